// Submits a plan to BullMQ: addBulk with a delay, in batches. See plan.py for the input and the output.
import { Queue } from "bullmq";
import IORedis from "ioredis";

const BATCH = 500;
const plan = JSON.parse(process.argv[2]);
const connection = new IORedis(process.env.BENCH_REDIS, { maxRetriesPerRequest: null });
const queue = new Queue("bench", { connection });
await queue.waitUntilReady();

const now = Date.now() / 1000;
const due = () => (plan.spread ? now + plan.lead + Math.random() * plan.spread : Math.ceil(now + plan.lead));
const tasks = Array.from({ length: plan.count }, (_, index) => {
  const instant = due();
  return { due: instant, path: `/${instant.toFixed(6)}/${plan.first + index}` };
});

const began = Date.now() / 1000;
const start = performance.now();
for (let first = 0; first < tasks.length; first += BATCH) {
  await queue.addBulk(
    tasks.slice(first, first + BATCH).map((task) => ({
      name: "deliver",
      data: { path: task.path },
      opts: { delay: Math.max(0, Math.ceil(task.due * 1000 - Date.now())), removeOnComplete: true },
    })),
  );
}
const seconds = (performance.now() - start) / 1000;
const dues = tasks.map((task) => task.due);
const first_due = dues.reduce((least, due) => Math.min(least, due));
const last_due = dues.reduce((most, due) => Math.max(most, due));
console.log(JSON.stringify({ seconds, began, first_due, last_due }));
await queue.close();
connection.disconnect();
