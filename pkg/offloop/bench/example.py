"""Count page visits: ten thousand commands at once, the I/O on two native threads."""

import asyncio
import sys

import offloop.redis as redis


async def main(url: str) -> None:
    async with redis.from_url(url, workers=2, decode_responses=True) as r:
        await r.set("greeting", "hello from a worker thread")
        print(await r.get("greeting"))

        visits = [r.incr("visits") for _ in range(10_000)]
        counts = await asyncio.gather(*visits)
        print(f"{len(set(counts)):,} visits counted, the last was number {max(counts):,}")
        print({name: r.stats()[name] for name in ("workers", "commands", "mean_batch")})


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379"))
