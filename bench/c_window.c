/* The floor behind a round trip: a C program with many GETs under way on one connection.
 *
 *     c_window HOST PORT KEY SECONDS DEPTH WORK_NS
 *
 * keeps DEPTH commands outstanding, as that many tasks of one client do: what has come
 * is read at once, for each reply the program is busy for WORK_NS (as an interpreter is
 * that runs a task's step) and asks again, and what was asked leaves in one write.
 * Prints {"ops_per_s": N, "p50_us": N, "p99_us": N}, each command timed from when it was
 * asked for until its reply is looked at.
 */
#include <hiredis/hiredis.h>

#include <stdio.h>
#include <stdlib.h>

#include "sending.h"
#include "timing.h"

enum { MOST_SAMPLES = 8 * 1024 * 1024, MOST_DEPTH = 4096 };

static void work(double until)
{
    while (now_us() < until) {
    }
}

/* The next reply that has come: 1 for a string, 0 for none, -1 for anything else. */
static int take(redisContext *context)
{
    redisReply *reply = NULL;
    int is_string;

    if (redisGetReplyFromReader(context, (void **)&reply) != REDIS_OK)
        return -1;
    if (reply == NULL)
        return 0;
    is_string = reply->type == REDIS_REPLY_STRING;
    freeReplyObject(reply);
    return is_string ? 1 : -1;
}

int main(int argc, char **argv)
{
    static double asked[MOST_DEPTH];
    redisContext *context = NULL;
    double *samples = malloc(MOST_SAMPLES * sizeof *samples);
    size_t count = 0, answered = 0, depth;
    double began, work_us;
    int status = 1, got = 0;

    if (argc != 7 || (depth = strtoul(argv[5], NULL, 10)) < 1 || depth > MOST_DEPTH) {
        fprintf(stderr, "usage: c_window HOST PORT KEY SECONDS DEPTH WORK_NS\n");
        return 2;
    }
    work_us = atof(argv[6]) / 1e3;
    context = redisConnect(argv[1], atoi(argv[2]));
    if (samples == NULL || context == NULL || context->err) {
        fprintf(stderr, "c_window: %s\n", context ? context->errstr : "out of memory");
        goto out;
    }
    began = now_us();
    for (size_t i = 0; i < depth; i++) {
        asked[i] = now_us();
        redisAppendCommand(context, "GET %s", argv[3]);
    }
    while (now_us() - began < atof(argv[4]) * 1e6) {
        if (write_all(context) || redisBufferRead(context) != REDIS_OK)
            goto broken;
        while ((got = take(context)) > 0) {
            double at = now_us(), *slot = &asked[answered++ % depth];

            if (answered > depth && count < MOST_SAMPLES)
                samples[count++] = at - *slot;
            work(at + work_us);
            *slot = now_us();
            redisAppendCommand(context, "GET %s", argv[3]);
        }
        if (got < 0)
            goto broken;
    }
    if (count == 0)
        goto broken;
    qsort(samples, count, sizeof *samples, by_value);
    printf("{\"ops_per_s\": %.1f, \"p50_us\": %.3f, \"p99_us\": %.3f}\n",
           (double)answered / (now_us() - began) * 1e6, samples[count / 2],
           samples[count * 99 / 100]);
    status = 0;
    goto out;
broken:
    fprintf(stderr, "c_window: GET %s did not answer with a string\n", argv[3]);
out:
    if (context != NULL)
        redisFree(context);
    free(samples);
    return status;
}
