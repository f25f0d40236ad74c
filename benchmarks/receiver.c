/*
 * The receiver of the benchmarks: HTTP/1.1 on one thread and one epoll, with keep-alive and pipelining.
 *
 *   receiver        listens on a free loopback port and prints it
 *
 * Any method on /DUE/NUMBER is a delivery: DUE is the task's due instant in Unix seconds, NUMBER counts the tasks of
 * one measure. It records when the delivery arrived and answers 200, at once or after a fixed delay. Control, by GET:
 *
 *   /_reset?delay=MS   forgets all arrivals; from now on answers are sent MS milliseconds after their request
 *   /_stats            counts as JSON
 *   /_arrivals         everything recorded since the reset: 24 bytes each, in the byte order of the machine:
 *                      double due, double arrival (Unix seconds), uint64 number
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_DESCRIPTORS 65536
#define BUFFER_BYTES 8192      /* a whole request must fit */
#define MAX_ARRIVALS 4000000   /* later ones are counted, but not recorded */
#define DELAYED_SLOTS 131072   /* answers that may wait for their delay at once; a power of two */
#define COPIES 128             /* answers in one send */

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok";
#define ANSWER_BYTES (sizeof(ANSWER) - 1)
static char answers[ANSWER_BYTES * COPIES];

struct arrival {
    double due;
    double arrival;
    uint64_t number;
};

struct connection {
    uint32_t generation;  /* distinguishes connections of one descriptor */
    int used;             /* bytes in buffer */
    size_t owed;          /* bytes of answers still to be sent */
    size_t phase;         /* offset of the next byte in an answer */
    int wants_write;
    int close_when_sent;
    char buffer[BUFFER_BYTES];
};

struct delayed {
    int64_t at;           /* monotonic nanoseconds */
    int descriptor;
    uint32_t generation;
};

static struct arrival *arrivals;
static struct connection *connections[MAX_DESCRIPTORS];
static struct delayed delayed[DELAYED_SLOTS];
static uint64_t first_delayed, next_delayed;
static uint64_t count, bad, opened, most_waiting;
static uint32_t generations;
static int64_t delay_ns;
static int poller, timer, listener;

static double wall_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int64_t monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void close_connection(int descriptor) {
    free(connections[descriptor]);
    connections[descriptor] = NULL;
    close(descriptor);  /* which also removes it from the epoll */
}

/* Sends what is owed, as much as the socket accepts; returns 0 if the connection is closed. */
static int send_owed(int descriptor) {
    struct connection *connection = connections[descriptor];
    while (connection->owed) {
        size_t most = sizeof(answers) - connection->phase;
        size_t wanted = connection->owed < most ? connection->owed : most;
        ssize_t sent = send(descriptor, answers + connection->phase, wanted, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) {
                close_connection(descriptor);
                return 0;
            }
            break;
        }
        connection->owed -= (size_t)sent;
        connection->phase = (connection->phase + (size_t)sent) % ANSWER_BYTES;
    }
    int wants_write = connection->owed > 0;
    if (wants_write != connection->wants_write) {
        struct epoll_event event = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0), .data.fd = descriptor};
        epoll_ctl(poller, EPOLL_CTL_MOD, descriptor, &event);
        connection->wants_write = wants_write;
    }
    if (!wants_write && connection->close_when_sent) {
        close_connection(descriptor);
        return 0;
    }
    return 1;
}

static void arm_timer(void) {
    struct itimerspec when = {0};
    if (first_delayed != next_delayed) {
        int64_t at = delayed[first_delayed % DELAYED_SLOTS].at;
        when.it_value.tv_sec = at / 1000000000;
        when.it_value.tv_nsec = at % 1000000000;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void answer_later(int descriptor) {
    if (next_delayed - first_delayed == DELAYED_SLOTS) {
        bad++;
        close_connection(descriptor);
        return;
    }
    struct delayed *slot = &delayed[next_delayed++ % DELAYED_SLOTS];
    slot->at = monotonic() + delay_ns;
    slot->descriptor = descriptor;
    slot->generation = connections[descriptor]->generation;
    if (next_delayed - first_delayed > most_waiting) most_waiting = next_delayed - first_delayed;
    if (next_delayed - first_delayed == 1) arm_timer();
}

/* Sends answers whose delay is over. The delay is the same for all, so they are in order. */
static void answer_delayed(void) {
    uint64_t expirations;
    if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timer");
    int64_t now = monotonic();
    while (first_delayed != next_delayed && delayed[first_delayed % DELAYED_SLOTS].at <= now) {
        struct delayed *slot = &delayed[first_delayed++ % DELAYED_SLOTS];
        struct connection *connection = connections[slot->descriptor];
        if (connection && connection->generation == slot->generation) {
            connection->owed += ANSWER_BYTES;
            send_owed(slot->descriptor);
        }
    }
    arm_timer();
}

/* Sends all data and waits for the client: control answers are rare and requested when nothing else happens. */
static void send_all(int descriptor, const void *data, size_t bytes) {
    const char *next = data;
    while (bytes) {
        ssize_t sent = send(descriptor, next, bytes, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return;
            struct pollfd writable = {.fd = descriptor, .events = POLLOUT};
            if (poll(&writable, 1, 5000) <= 0) return;
            continue;
        }
        next += sent;
        bytes -= (size_t)sent;
    }
}

static void send_control(int descriptor, const void *body, size_t bytes) {
    char head[128];
    int length = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", bytes);
    send_all(descriptor, head, (size_t)length);
    send_all(descriptor, body, bytes);
}

static void control(int descriptor, const char *path) {
    uint64_t noted = count < MAX_ARRIVALS ? count : MAX_ARRIVALS;
    if (!strncmp(path, "/_reset", 7)) {
        const char *given = strstr(path, "delay=");
        delay_ns = (int64_t)((given ? atof(given + 6) : 0.0) * 1e6);
        count = bad = opened = most_waiting = 0;
        send_control(descriptor, "{}", 2);
    } else if (!strncmp(path, "/_stats", 7)) {
        char body[256];
        int length = snprintf(
            body, sizeof body,
            "{\"count\":%lu,\"bad\":%lu,\"opened\":%lu,\"most_waiting\":%lu,\"first\":%.6f,\"last\":%.6f}",
            (unsigned long)count, (unsigned long)bad, (unsigned long)opened, (unsigned long)most_waiting,
            noted ? arrivals[0].arrival : 0.0, noted ? arrivals[noted - 1].arrival : 0.0);
        send_control(descriptor, body, (size_t)length);
    } else {
        send_control(descriptor, arrivals, noted * sizeof *arrivals);
    }
}

static void note(const char *path, double now) {
    if (count < MAX_ARRIVALS) {
        char *end;
        arrivals[count].due = strtod(path + 1, &end);
        arrivals[count].arrival = now;
        arrivals[count].number = *end == '/' ? strtoull(end + 1, NULL, 10) : 0;
    }
    count++;
}

/* Length of the body, from the headers between first and end; -1 for a chunked body. */
static long body_length(const char *first, const char *end, int *closes) {
    long length = 0;
    for (const char *line = first; line < end;) {
        const char *stop = memchr(line, '\r', (size_t)(end - line));
        if (!stop) stop = end;
        if (!strncasecmp(line, "content-length:", 15)) length = strtol(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18)) length = -1;
        if (!strncasecmp(line, "connection: close", 17)) *closes = 1;
        line = stop + 2;
    }
    return length;
}

static void on_readable(int descriptor) {
    struct connection *connection = connections[descriptor];
    ssize_t got = recv(descriptor, connection->buffer + connection->used, BUFFER_BYTES - 1 - (size_t)connection->used, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) return;
        close_connection(descriptor);
        return;
    }
    connection->used += (int)got;
    connection->buffer[connection->used] = 0;
    double now = wall_clock();
    char *next = connection->buffer, *end = connection->buffer + connection->used;
    while (next < end) {
        char *head_end = memmem(next, (size_t)(end - next), "\r\n\r\n", 4);
        char *path = head_end ? memchr(next, ' ', (size_t)(head_end - next)) : NULL;
        char *line_end = path ? memchr(path, '\r', (size_t)(head_end + 1 - path)) : NULL;
        if (!head_end) break;
        int closes = 0;
        long body = line_end ? body_length(line_end + 2, head_end, &closes) : -1;
        if (body < 0) {
            bad++;
            close_connection(descriptor);
            return;
        }
        if (head_end + 4 + body > end) break;
        connection->close_when_sent |= closes;
        if (path[1] == '/' && path[2] == '_') {
            *line_end = 0;
            control(descriptor, path + 1);
        } else {
            note(path + 1, now);
            if (delay_ns) {
                answer_later(descriptor);
                if (!connections[descriptor]) return;
            } else {
                connection->owed += ANSWER_BYTES;
            }
        }
        next = head_end + 4 + body;
    }
    connection->used = (int)(end - next);
    if (connection->used == BUFFER_BYTES - 1) {
        bad++;
        close_connection(descriptor);
        return;
    }
    memmove(connection->buffer, next, (size_t)connection->used);
    if (!delay_ns) send_owed(descriptor);
}

static void on_connection(void) {
    for (;;) {
        int descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (descriptor < 0) return;
        struct connection *connection = descriptor < MAX_DESCRIPTORS ? malloc(sizeof *connection) : NULL;
        if (!connection) {
            bad++;
            close(descriptor);
            continue;
        }
        connection->generation = ++generations;
        connection->used = connection->wants_write = connection->close_when_sent = 0;
        connection->owed = connection->phase = 0;
        connections[descriptor] = connection;
        opened++;
        int on = 1;
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
        epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &event);
    }
}

static void listen_on_free_port(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) die("socket");
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 4096)) die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length)) die("getsockname");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

int main(void) {
    struct rlimit limit;
    signal(SIGPIPE, SIG_IGN);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < MAX_DESCRIPTORS ? limit.rlim_max : MAX_DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (size_t copy = 0; copy < COPIES; copy++) memcpy(answers + copy * ANSWER_BYTES, ANSWER, ANSWER_BYTES);
    arrivals = mmap(NULL, MAX_ARRIVALS * sizeof *arrivals, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arrivals == MAP_FAILED) die("memory");
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (poller < 0 || timer < 0) die("epoll");
    listen_on_free_port();
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            int descriptor = events[i].data.fd;
            if (descriptor == listener) on_connection();
            else if (descriptor == timer) answer_delayed();
            else if (connections[descriptor]) {
                if (events[i].events & EPOLLOUT && !send_owed(descriptor)) continue;
                if (events[i].events & ~(uint32_t)EPOLLOUT) on_readable(descriptor);
            }
        }
    }
}
