/* The floor behind consumers: a C program that takes messages as an application's tasks do.
 *
 *     c_consumers HOST PORT SECONDS TASKS stream KEY GROUP
 *     c_consumers HOST PORT SECONDS TASKS queue FROM TO
 *
 * Each of TASKS consumers asks on a connection of its own, since what it asks may wait:
 * XREADGROUP BLOCK for one entry, or BLMOVE.  It is done with a message when XACK, or LREM,
 * is answered, which all send over one further connection.  One thread does it all, and
 * looks for what has come without ever sleeping.
 * Prints {"ops_per_s": N, "cpu_us": N}: messages done, and the CPU time of one.
 */
#include <hiredis/hiredis.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include "sending.h"
#include "timing.h"

enum { MOST_TASKS = 64, SHARED = MOST_TASKS };

static redisContext *conns[MOST_TASKS + 1]; /* the consumers' own, and the shared one */
static int acking[MOST_TASKS];              /* whose acknowledgements are under way, in order */
static unsigned long acks, acked;
static const char *from, *to;
static int is_stream;

static int ask(int task)
{
    redisContext *own = conns[task];

    if (is_stream)
        redisAppendCommand(own, "XREADGROUP GROUP %s c%d COUNT 1 BLOCK 5000 STREAMS %s >", to,
                           task, from);
    else
        redisAppendCommand(own, "BLMOVE %s %s RIGHT LEFT 5", from, to);
    return write_all(own);
}

/* The message is done with: its id, or the message itself. */
static int acknowledge(int task, const redisReply *reply)
{
    redisContext *shared = conns[SHARED];

    acking[acks++ % MOST_TASKS] = task;
    if (is_stream && reply->type == REDIS_REPLY_ARRAY) {
        const redisReply *entry = reply->element[0]->element[1]->element[0];

        return redisAppendCommand(shared, "XACK %s %s %s", from, to, entry->element[0]->str);
    }
    if (!is_stream && reply->type == REDIS_REPLY_STRING)
        return redisAppendCommand(shared, "LREM %s 1 %b", to, reply->str, (size_t)reply->len);
    return REDIS_ERR;
}

/* Handle all that has come on a connection.  Not 0: something else than a message. */
static int handle(int index)
{
    redisReply *reply = NULL;
    int failed = redisBufferRead(conns[index]) != REDIS_OK;

    while (!failed) {
        failed = redisGetReplyFromReader(conns[index], (void **)&reply) != REDIS_OK;
        if (failed || reply == NULL)
            break;
        if (index != SHARED)
            failed = acknowledge(index, reply) != REDIS_OK;
        else
            failed = reply->type != REDIS_REPLY_INTEGER || ask(acking[acked++ % MOST_TASKS]);
        freeReplyObject(reply);
    }
    return failed;
}

static double cpu_us(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

int main(int argc, char **argv)
{
    struct epoll_event events[MOST_TASKS + 1];
    int tasks, i, count, poll = epoll_create1(0);
    double began, secs, used;

    if (argc != 8 || (tasks = atoi(argv[4])) < 1 || tasks > MOST_TASKS) {
        fprintf(stderr, "usage: c_consumers HOST PORT SECONDS TASKS stream|queue FROM TO\n");
        return 2;
    }
    is_stream = strcmp(argv[5], "stream") == 0;
    from = argv[6];
    to = argv[7];
    for (i = 0; i <= MOST_TASKS; i++) {
        struct epoll_event wanted = { .events = EPOLLIN, .data.u32 = (unsigned)i };

        if (i >= tasks && i != SHARED)
            continue;
        conns[i] = redisConnect(argv[1], atoi(argv[2]));
        if (conns[i] == NULL || conns[i]->err ||
            epoll_ctl(poll, EPOLL_CTL_ADD, conns[i]->fd, &wanted) != 0) {
            fprintf(stderr, "c_consumers: cannot connect\n");
            return 1;
        }
    }
    for (i = 0; i < tasks; i++)
        if (ask(i))
            return 1;
    secs = atof(argv[3]);
    began = now_us();
    used = cpu_us();
    while (now_us() - began < secs * 1e6) {
        unsigned long before = acks;

        count = epoll_wait(poll, events, MOST_TASKS + 1, 0);
        for (i = 0; i < count; i++)
            if (handle((int)events[i].data.u32)) {
                fprintf(stderr, "c_consumers: no message, or no acknowledgement\n");
                return 1;
            }
        if (acks != before && write_all(conns[SHARED]))
            return 1;
    }
    if (acked == 0)
        return 1;
    printf("{\"ops_per_s\": %.1f, \"cpu_us\": %.3f}\n",
           (double)acked / (now_us() - began) * 1e6, (cpu_us() - used) / (double)acked);
    return 0;
}
