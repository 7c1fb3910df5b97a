/* The floor for one task: a C program that calls redisCommand in a loop.
 *
 *     c_loop HOST PORT KEY SECONDS [DEPTH]
 *
 * prints {"ops": N, "ops_per_s": N, "p50_us": N, "p99_us": N} for GET KEY,
 * each call timed on its own. Nothing that awaits a reply in Python can be
 * faster than this on the same server.
 *
 * With DEPTH, a call is a pipeline of so many GETs by redisAppendCommand, and
 * ops counts the GETs.
 */
#include <hiredis/hiredis.h>

#include <stdio.h>
#include <stdlib.h>

#include "timing.h"

enum { MOST_SAMPLES = 8 * 1024 * 1024, WARMUP = 500 };

/* One GET; 0 if it answered with a string. */
static int get(redisContext *context, const char *key)
{
    redisReply *reply = redisCommand(context, "GET %s", key);
    int failed = reply == NULL || reply->type != REDIS_REPLY_STRING;

    if (reply != NULL)
        freeReplyObject(reply);
    return failed;
}

/* A pipeline of GETs; 0 if each answered with a string. */
static int get_many(redisContext *context, const char *key, size_t depth)
{
    int failed = 0;

    for (size_t i = 0; i < depth; i++)
        failed |= redisAppendCommand(context, "GET %s", key) != REDIS_OK;
    for (size_t i = 0; i < depth && !failed; i++) {
        redisReply *reply = NULL;

        failed = redisGetReply(context, (void **)&reply) != REDIS_OK ||
                 reply->type != REDIS_REPLY_STRING;
        if (reply != NULL)
            freeReplyObject(reply);
    }
    return failed;
}

int main(int argc, char **argv)
{
    redisContext *context = NULL;
    double *samples = NULL;
    double began, last;
    size_t count = 0, depth;
    int status = 1;

    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: c_loop HOST PORT KEY SECONDS [DEPTH]\n");
        return 2;
    }
    depth = argc == 6 ? (size_t)atoi(argv[5]) : 0;
    samples = malloc(MOST_SAMPLES * sizeof *samples);
    context = redisConnect(argv[1], atoi(argv[2]));
    if (samples == NULL || context == NULL || context->err) {
        fprintf(stderr, "c_loop: %s\n", context ? context->errstr : "out of memory");
        goto out;
    }
    for (int i = 0; i < WARMUP; i++)
        if (get(context, argv[3]))
            goto broken;
    began = last = now_us();
    while (last - began < atof(argv[4]) * 1e6 && count < MOST_SAMPLES) {
        double next;

        if (depth > 0 ? get_many(context, argv[3], depth) : get(context, argv[3]))
            goto broken;
        next = now_us();
        samples[count++] = next - last;
        last = next;
    }
    qsort(samples, count, sizeof *samples, by_value);
    printf("{\"ops\": %zu, \"ops_per_s\": %.1f, \"p50_us\": %.3f, \"p99_us\": %.3f}\n",
           count * (depth > 0 ? depth : 1),
           (double)(count * (depth > 0 ? depth : 1)) / (last - began) * 1e6, samples[count / 2],
           samples[count * 99 / 100]);
    status = 0;
    goto out;
broken:
    fprintf(stderr, "c_loop: GET %s did not answer with a string\n", argv[3]);
out:
    if (context != NULL)
        redisFree(context);
    free(samples);
    return status;
}
