/* Gives the host name "several.test" the addresses of ADDRESSES, numeric and separated by commas, in that order. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

typedef int (*look_up)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    look_up real = (look_up)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *listed = getenv("ADDRESSES");
    if (!node || !listed || strcmp(node, "several.test") != 0)
        return real(node, service, hints, found);
    char *copy = strdup(listed), *rest = copy, *address;
    struct addrinfo **end = found;
    *found = NULL;
    while ((address = strsep(&rest, ","))) {
        if (real(address, service, hints, end) != 0)
            continue;
        while (*end)
            end = &(*end)->ai_next;
    }
    free(copy);
    return *found ? 0 : EAI_NONAME;
}
