/* A TCP proxy that lets every byte arrive later, as a network would.
 *
 *     delay_proxy TARGET_PORT MICROSECONDS
 *
 * listens on 127.0.0.1 and prints its port; what is sent to it reaches
 * 127.0.0.1:TARGET_PORT that many microseconds later, and the answers likewise,
 * so a round trip takes twice as long more. Bandwidth is not limited: any
 * number of chunks is under way at a time. Ends when its standard input does.
 *
 * All chunks have the same delay, so one first-in first-out queue holds them in
 * the order of their due times. asyncio timers are as coarse as a millisecond;
 * ppoll with a timer slack of 1 ns is not, hence C.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FDS = 4096, CHUNK = 64 * 1024, FIXED = 2 };

struct chunk {
    struct chunk *next;
    int64_t due_ns;
    int to;
    size_t length;
    char bytes[];
};

static struct chunk *oldest, *newest;
static struct pollfd polled[MOST_FDS]; /* [0] standard input, [1] the listener */
static nfds_t polled_count = FIXED;
static int partner[MOST_FDS]; /* by fd: the other side, -1 when closed */

static int64_t now_ns(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static void watch(int fd, int other)
{
    int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    partner[fd] = other;
    polled[polled_count++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static void drop(int fd)
{
    for (nfds_t i = FIXED; i < polled_count; i++)
        if (polled[i].fd == fd) {
            polled[i] = polled[--polled_count];
            break;
        }
    /* A chunk for this fd must not reach whoever gets the number next. */
    for (struct chunk *chunk = oldest; chunk != NULL; chunk = chunk->next)
        if (chunk->to == fd)
            chunk->to = -1;
    partner[fd] = -1;
    close(fd);
}

static void hang_up(int fd)
{
    int other = partner[fd];

    drop(fd);
    if (other >= 0)
        drop(other);
}

static void accept_one(int listener, struct sockaddr_in *target)
{
    int in = accept(listener, NULL, NULL);
    int out = socket(AF_INET, SOCK_STREAM, 0);

    if (in >= 0 && out >= 0 && in < MOST_FDS && out < MOST_FDS && polled_count + 2 <= MOST_FDS &&
        connect(out, (struct sockaddr *)target, sizeof *target) == 0) {
        watch(in, out);
        watch(out, in);
        return;
    }
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
}

static void take(int fd, int64_t delay_ns)
{
    struct chunk *chunk = malloc(sizeof *chunk + CHUNK);
    ssize_t got;

    if (chunk == NULL)
        abort();
    got = recv(fd, chunk->bytes, CHUNK, 0);
    if (got <= 0) {
        free(chunk);
        hang_up(fd);
        return;
    }
    chunk = realloc(chunk, sizeof *chunk + (size_t)got);
    chunk->next = NULL;
    chunk->due_ns = now_ns() + delay_ns;
    chunk->to = partner[fd];
    chunk->length = (size_t)got;
    if (newest != NULL)
        newest->next = chunk;
    else
        oldest = chunk;
    newest = chunk;
}

static void deliver(void)
{
    while (oldest != NULL && oldest->due_ns <= now_ns()) {
        struct chunk *chunk = oldest;

        oldest = chunk->next;
        if (oldest == NULL)
            newest = NULL;
        /* Blocking: both ends read all the time, so this never waits long. */
        for (size_t sent = 0; chunk->to >= 0 && sent < chunk->length;) {
            ssize_t n = send(chunk->to, chunk->bytes + sent, chunk->length - sent, MSG_NOSIGNAL);

            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0) {
                hang_up(chunk->to);
                break;
            }
            sent += (size_t)n;
        }
        free(chunk);
    }
}

static int listen_anywhere(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&at, size) != 0 || listen(fd, 1024) != 0 ||
        getsockname(fd, (struct sockaddr *)&at, &size) != 0) {
        perror("delay_proxy");
        exit(1);
    }
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    struct sockaddr_in target = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int64_t delay_ns;

    if (argc != 3) {
        fprintf(stderr, "usage: delay_proxy TARGET_PORT MICROSECONDS\n");
        return 2;
    }
    target.sin_port = htons((uint16_t)atoi(argv[1]));
    delay_ns = atoll(argv[2]) * 1000;
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    polled[0] = (struct pollfd){.fd = 0, .events = POLLIN};
    polled[1] = (struct pollfd){.fd = listen_anywhere(), .events = POLLIN};
    for (;;) {
        struct timespec wait = {0, 0};
        struct timespec *limit = NULL;

        if (oldest != NULL) {
            int64_t left = oldest->due_ns - now_ns();

            if (left > 0)
                wait = (struct timespec){left / 1000000000, left % 1000000000};
            limit = &wait;
        }
        if (ppoll(polled, polled_count, limit, NULL) < 0 && errno != EINTR)
            return 1;
        if (polled[0].revents)
            return 0;
        deliver();
        /* Backwards: dropping an fd moves the last one into its place. */
        for (nfds_t i = polled_count; i-- > FIXED;)
            if (i < polled_count && polled[i].revents) {
                polled[i].revents = 0;
                take(polled[i].fd, delay_ns);
            }
        if (polled[1].revents)
            accept_one(polled[1].fd, &target);
    }
}
