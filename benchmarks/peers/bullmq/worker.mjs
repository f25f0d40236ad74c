// A BullMQ worker that posts with undici.
import { Worker } from "bullmq";
import IORedis from "ioredis";
import { Agent, request } from "undici";

const BODY = process.env.BENCH_BODY;
const connection = new IORedis(process.env.BENCH_REDIS, { maxRetriesPerRequest: null });
const dispatcher = new Agent({ connections: null });

async function deliver(job) {
  const answer = await request(process.env.BENCH_RECEIVER + job.data.path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: BODY,
    dispatcher,
  });
  await answer.body.dump();
  if (answer.statusCode >= 400) throw new Error(`the receiver answered ${answer.statusCode}`);
}

const worker = new Worker("bench", deliver, { connection, concurrency: Number(process.env.BENCH_CONCURRENCY) });
worker.on("error", (error) => console.error(error));
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => worker.close().then(() => process.exit(0)));
