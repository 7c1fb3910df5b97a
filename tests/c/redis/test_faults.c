/* A server that misbehaves: what is sent and what is not, what each command is
 * told, and that the channel goes on with a new connection. */
#include <netinet/in.h>
#include <sys/socket.h>

#include "commands.h"
#include "fakeserver.h"

static struct rt_pool *pool;
static struct rt_mailbox *mb;

/* A channel to the fake without a handshake, so that the first bytes it reads
 * are the first command's. */
static struct rds_channel *channel_to_fake(const struct fake *fake, uint64_t max_reply)
{
    struct rds_options o = quick_options();

    o.protocol = 2;
    if (fake->port != 0) {
        o.host = "127.0.0.1";
        o.port = fake->port;
    } else {
        o.path = fake->path;
    }
    if (max_reply != 0)
        o.max_reply = max_reply;
    return channel_to(pool, &o);
}

static struct command *send_echo(struct rds_channel *channel, struct command *c, uint64_t number,
                                 uint64_t deadline)
{
    command_echo(c, mb, deadline, number);
    MT_REQUIRE(rds_channel_submit(channel, &c->job) == RT_OK);
    return c;
}

/* A command that is sent and never answered in time. A machine that was too slow to
 * send it before that gets more time. Its failure is the caller's to look at. */
static void overdue_echo(struct rds_channel *channel, struct command *c, uint64_t number)
{
    uint64_t patience;

    for (patience = 50 * RT_MS; patience < 60 * RT_SEC; patience *= 4) {
        command_home(mb, send_echo(channel, c, number, rt_now() + patience));
        MT_EQ(c->job.base.err, RT_ETIMEOUT);
        if (c->job.base.err != RT_ETIMEOUT || c->job.maybe_run)
            return;
        MT_CHECK(command_mentions(c, "not executed"));
        rds_job_fini(&c->job);
    }
    MT_REQUIRE(!"a command was not sent in a minute");
}

/* A command that works, on whatever connection there is by now. */
static void works(struct rds_channel *channel)
{
    static uint64_t number = 1000000;
    struct command c;

    command_home(mb, send_echo(channel, &c, ++number, RT_NEVER));
    if (!MT_EQ(c.job.base.err, RT_OK) || !MT_CHECK(echoes(&c)))
        fprintf(stderr, "    %s\n", command_says(&c));
    rds_job_fini(&c.job);
}

/* ---- bad bytes ---------------------------------------------------------------------- */

/* Reads one command on its first connection, says this, and serves well after. */
struct speech {
    const char *text;
    size_t repeat;
    bool sit; /* keep the connection open afterwards */
};

static void speak_once(struct peer *peer, void *user)
{
    const struct speech *speech = user;
    size_t i;

    if (peer->nth > 0) {
        serve_normally(peer, NULL);
        return;
    }
    if (!peer_command(peer))
        return;
    for (i = 0; i < speech->repeat; i++) {
        if (!peer_say(peer, speech->text))
            break;
    }
    if (speech->sit)
        peer_sit(peer);
}

static void fails_with(struct speech speech, uint64_t max_reply, int err, const char *mention)
{
    struct rds_channel *channel;
    struct command c;
    struct fake fake;

    fake_start(&fake, false, speak_once, &speech);
    channel = channel_to_fake(&fake, max_reply);
    command_home(mb, send_echo(channel, &c, 1, RT_NEVER));
    MT_EQ(c.job.base.err, err);
    MT_EQ(c.job.maybe_run, 1); /* it was sent */
    MT_CHECK(command_mentions(&c, "may have run"));
    MT_CHECK(command_mentions(&c, fake.path));
    MT_CHECK(command_mentions(&c, mention));
    rds_job_fini(&c.job);
    works(channel);
    MT_EQ(atomic_load(&fake.connections), 2);
    end_channel(channel, mb);
    fake_stop(&fake);
}

static void bad_bytes(void)
{
    fails_with((struct speech){ "HTTP/1.1 400 Bad Request\r\n\r\n", 1, true }, 0, RT_EPROTOCOL,
               "Protocol error");
    fails_with((struct speech){ "*1\r\n", 10000, true }, 0, RT_EPROTOCOL, "nested");
    fails_with((struct speech){ "$4611686018427387904\r\nabc", 1, true }, 0, RT_EPROTOCOL,
               "length");
    fails_with((struct speech){ "*4611686018427387904\r\n", 1, true }, 0, RT_EPROTOCOL,
               "Protocol error");
    fails_with((struct speech){ "$-5\r\n", 1, true }, 0, RT_EPROTOCOL, "Protocol error");
    fails_with((struct speech){ "$11\r\nhello", 1, false }, 0, RT_ELOST, "closed the connection");
    fails_with((struct speech){ "", 1, false }, 0, RT_ELOST, "closed the connection");
    fails_with((struct speech){ "*3\r\n:1\r\n:2\r\n", 1, false }, 0, RT_ELOST, "closed");
    fails_with((struct speech){ "$100000\r\nabc", 1, false }, 1024, RT_ELOST, "closed");
    /* A line without an end must not be kept for ever. */
    fails_with((struct speech){ "+aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                                200000, true }, 65536, RT_EPROTOCOL, "line");
}

/* ---- replies out of turn -------------------------------------------------------------- */

static void extra_reply(struct peer *peer, void *user)
{
    (void)user;
    while (peer_command(peer) && peer_answer(peer)) {
        if (peer->nth == 0 && !peer_say(peer, "$1\r\n7\r\n"))
            break;
    }
}

/* The reply nobody asked for comes with a wanted one: the wanted one counts, the
 * connection is replaced, and the next command gets its own. */
static void extra(void)
{
    struct rds_channel *channel;
    struct fake fake;
    unsigned i;

    fake_start(&fake, false, extra_reply, NULL);
    channel = channel_to_fake(&fake, 0);
    works(channel);
    MT_EVENTUALLY(rds_channel_connections(channel) == 0);
    for (i = 0; i < 20; i++)
        works(channel);
    MT_EQ(atomic_load(&fake.connections), 2);
    end_channel(channel, mb);
    fake_stop(&fake);
}

static atomic_uint whole_commands; /* that can have been received */

/* Answers far more than what it has got. */
static void reply_too_early(struct peer *peer, void *user)
{
    unsigned i;

    (void)user;
    while (peer->nth > 0 && peer_command(peer)) {
        atomic_fetch_add(&whole_commands, 1);
        if (!peer_answer(peer))
            break;
    }
    if (peer->nth > 0 || !peer_waits(peer, -1))
        return;
    mt_sleep_ms(50); /* until the socket is full */
    for (i = 0; i < 100; i++) {
        if (!peer_say(peer, "+OK\r\n"))
            break;
    }
    while (peer_command(peer))
        atomic_fetch_add(&whole_commands, 1);
}

static void big_command(struct command *c, size_t size)
{
    const char *argv[] = { "SET", "big", NULL };
    size_t lens[] = { 3, 3, size };
    char *value = malloc(size);

    MT_REQUIRE(value != NULL);
    memset(value, 'x', size);
    argv[2] = value;
    command_argv(c, mb, RT_NEVER, 3, argv, lens);
    free(value);
}

/* A reply to a command that is not wholly out is nobody's. */
static void early(void)
{
    enum { MANY = 60 };
    unsigned answered = 0, i;
    struct rds_channel *channel;
    struct command c[MANY];
    struct fake fake;

    atomic_store(&whole_commands, 0);
    fake_start(&fake, false, reply_too_early, NULL);
    channel = channel_to_fake(&fake, 0);
    for (i = 0; i < MANY; i++) {
        big_command(&c[i], 30000);
        MT_REQUIRE(rds_channel_submit(channel, &c[i].job) == RT_OK);
    }
    for (i = 0; i < MANY; i++)
        command_home(mb, &c[i]);
    for (i = 0; i < MANY; i++) {
        /* One may have been half out; what was not sent at all was kept, and
         * sent on the next connection. */
        answered += c[i].job.base.err == RT_OK;
        if (c[i].job.base.err != RT_OK) {
            MT_EQ(c[i].job.base.err, RT_EPROTOCOL);
            MT_EQ(c[i].job.maybe_run, 1);
        }
        rds_job_fini(&c[i].job);
    }
    MT_CHECK(answered >= MANY - 1);
    MT_EQ(answered, atomic_load(&whole_commands)); /* no more than it received */
    MT_EQ(atomic_load(&fake.connections), 2);
    works(channel);
    end_channel(channel, mb);
    fake_stop(&fake);
}

static void with_pushes(struct peer *peer, void *user)
{
    (void)user;
    while (peer_command(peer)) {
        if (!peer_say(peer, ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n|1\r\n+ttl\r\n:1\r\n") ||
            !peer_answer(peer) || !peer_say(peer, ">1\r\n+after\r\n"))
            break;
    }
}

static void pushes(void)
{
    struct rds_channel *channel;
    struct fake fake;
    unsigned i;

    fake_start(&fake, false, with_pushes, NULL);
    channel = channel_to_fake(&fake, 0);
    for (i = 0; i < 200; i++)
        works(channel);
    MT_EVENTUALLY(rt_read(&channel->stats.pushes) == 600);
    MT_EQ(rt_read(&channel->stats.replies), 200);
    MT_EQ(atomic_load(&fake.connections), 1);
    end_channel(channel, mb);
    fake_stop(&fake);
}

/* ---- silence -------------------------------------------------------------------------- */

static void half_then_silence(struct peer *peer, void *user)
{
    (void)user;
    if (peer->nth > 0) {
        serve_normally(peer, NULL);
        return;
    }
    if (peer_command(peer))
        peer_say(peer, "$11\r\nhello");
    peer_sit(peer);
}

static void silence(void)
{
    struct rds_channel *channel;
    struct command c;
    struct fake fake;

    fake_start(&fake, false, half_then_silence, NULL);
    channel = channel_to_fake(&fake, 0);
    overdue_echo(channel, &c, 1);
    MT_CHECK(command_mentions(&c, "may have run"));
    rds_job_fini(&c.job);
    works(channel); /* once the silent connection is given up */
    MT_EQ(atomic_load(&fake.connections), 2);
    end_channel(channel, mb);
    fake_stop(&fake);
}

/* Regression: a deadline that passed in the middle of an array left the parser
 * writing into a job that had gone home. Such a connection is given up. */
static atomic_uint go_on;

static void array_in_two_parts(struct peer *peer, void *user)
{
    char filler[302];

    (void)user;
    if (peer->nth > 0) {
        serve_normally(peer, NULL);
        return;
    }
    if (!peer_command(peer) || !peer_say(peer, "*2\r\n$5\r\nfirst\r\n"))
        return;
    while (!atomic_load(&go_on) && !atomic_load(&peer->fake->stopping))
        mt_sleep_ms(1);
    memset(filler, 'F', 300);
    memcpy(filler + 300, "\r\n", 2);
    if (peer_say(peer, "$300\r\n") && peer_write(peer, filler, 302))
        serve_normally(peer, NULL); /* it is still in use: the deadline was before the array */
}

/* Whether the deadline passed inside the array: before it there is nothing to see. */
static bool inside_an_array(uint64_t patience)
{
    struct rds_channel *channel;
    struct command *c = malloc(sizeof *c);
    struct fake fake;
    unsigned connections, i;
    bool sent;

    MT_REQUIRE(c != NULL);
    atomic_store(&go_on, 0);
    fake_start(&fake, false, array_in_two_parts, NULL);
    channel = channel_to_fake(&fake, 0);
    command_home(mb, send_echo(channel, c, 1, rt_now() + patience));
    MT_EQ(c->job.base.err, RT_ETIMEOUT);
    sent = c->job.maybe_run;
    rds_job_fini(&c->job);
    memset(c, 0x5a, sizeof *c);
    atomic_store(&go_on, 1);
    if (sent) {
        const unsigned char *bytes = (const unsigned char *)c;
        unsigned changed = 0;

        works(channel);
        for (i = 0; i < sizeof *c; i++)
            changed += bytes[i] != 0x5a;
        MT_EQ(changed, 0); /* nobody wrote into it after it was home */
    }
    free(c);
    connections = atomic_load(&fake.connections);
    end_channel(channel, mb);
    fake_stop(&fake);
    return sent && connections == 2;
}

static void deadline_inside_an_array(void)
{
    uint64_t patience = 50 * RT_MS;

    /* A machine that was too slow to read the beginning in that time gets more. */
    while (!inside_an_array(patience)) {
        patience *= 4;
        if (!MT_CHECK(patience < 60 * RT_SEC))
            break;
    }
}

/* ---- a server that stops reading -------------------------------------------------------- */

static atomic_uint read_on;

static void read_later(struct peer *peer, void *user)
{
    (void)user;
    while (peer->nth == 0 && !atomic_load(&read_on) && !atomic_load(&peer->fake->stopping))
        mt_sleep_ms(1);
    serve_normally(peer, NULL);
}

/* Whether a part of the large command was out before its time was over. */
static bool stopped_reading(uint64_t patience)
{
    struct rds_channel *channel;
    struct command big, small, mute;
    struct fake fake;
    uint64_t until;
    bool begun;

    atomic_store(&read_on, 0);
    fake_start(&fake, true, read_later, NULL);
    channel = channel_to_fake(&fake, 0);
    big_command(&big, (size_t)64 << 20);
    until = rt_now() + 6 * patience; /* making it took its time */
    big.job.base.deadline = until;
    MT_REQUIRE(rds_channel_submit(channel, &big.job) == RT_OK);
    send_echo(channel, &mute, 1, rt_now() + patience);
    send_echo(channel, &small, 2, RT_NEVER);
    command_home(mb, &mute);
    MT_EQ(mute.job.base.err, RT_ETIMEOUT);
    MT_EQ(mute.job.maybe_run, 0);
    MT_CHECK(command_mentions(&mute, "not executed"));
    MT_CHECK(atomic_load(&big.homes) == 0 || rt_now() >= until);
    command_home(mb, &big);
    MT_EQ(big.job.base.err, RT_ETIMEOUT);
    begun = big.job.maybe_run;
    atomic_store(&read_on, 1);
    command_home(mb, &small); /* kept, and sent on the next connection */
    MT_EQ(small.job.base.err, RT_OK);
    MT_CHECK(echoes(&small));
    rds_job_fini(&big.job);
    rds_job_fini(&small.job);
    rds_job_fini(&mute.job);
    end_channel(channel, mb);
    fake_stop(&fake);
    return begun;
}

static void stops_reading(void)
{
    uint64_t patience = 100 * RT_MS;

    while (!stopped_reading(patience)) {
        patience *= 4;
        if (!MT_CHECK(patience < 10 * RT_SEC))
            break;
    }
}

/* Regression: told to reconnect in the middle of a large command, the channel
 * waited for its end and never sent it. */
static void disconnect_in_a_command(void)
{
    struct rds_channel *channel;
    struct command big;
    struct fake fake;

    atomic_store(&read_on, 0);
    fake_start(&fake, true, read_later, NULL);
    channel = channel_to_fake(&fake, 0);
    big_command(&big, (size_t)16 << 20);
    MT_REQUIRE(rds_channel_submit(channel, &big.job) == RT_OK);
    MT_EVENTUALLY(rt_read(&channel->stats.bytes_out) > 0);
    rds_channel_disconnect(channel);
    atomic_store(&read_on, 1);
    command_home(mb, &big);
    MT_EQ(big.job.base.err, RT_OK);
    rds_job_fini(&big.job);
    works(channel);
    MT_EQ(atomic_load(&fake.connections), 2);
    end_channel(channel, mb);
    fake_stop(&fake);
}

/* A server that talks without an end must not keep the others' worker: it floods
 * from several threads, so that there is always more to read. */
#define FLOODERS 4

static void *pour(void *arg)
{
    static const char block[1 << 18];

    while (peer_write(arg, block, sizeof block)) {
    }
    return NULL;
}

static void flood(struct peer *peer, void *user)
{
    pthread_t threads[FLOODERS];
    unsigned i;

    (void)user;
    if (!peer_command(peer) || !peer_say(peer, "$1099511627776\r\n")) /* 1 TB */
        return;
    for (i = 0; i < FLOODERS; i++)
        threads[i] = mt_spawn(pour, peer);
    for (i = 0; i < FLOODERS; i++)
        mt_join(threads[i]);
}

static void flooded(void)
{
    struct rds_channel *noisy, *quiet;
    struct fake fake, other;
    struct command c, d;
    uint64_t patience = 200 * RT_MS;
    unsigned i;

    fake_start(&fake, false, flood, NULL);
    fake_start(&other, false, serve_normally, NULL);
    noisy = channel_to_fake(&fake, 1 << 20);
    quiet = channel_to_fake(&other, 0);
    works(quiet);
    /* A machine that is too slow for the flood to begin in this time gets more. */
    for (send_echo(noisy, &c, 1, rt_now() + patience);
         rt_read(&noisy->stats.bytes_in) <= 1 << 20;) {
        if (command_next(mb, 1) == NULL)
            continue;
        MT_REQUIRE(patience < 60 * RT_SEC);
        patience *= 4;
        MT_EQ(c.job.base.err, RT_ETIMEOUT);
        rds_job_fini(&c.job);
        send_echo(noisy, &c, 1, rt_now() + patience);
    }
    for (i = 0; i < 100; i++)
        works(quiet);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_ETIMEOUT);
    rds_job_fini(&c.job);
    /* And it can be closed while it talks. */
    command_text(&d, mb, RT_NEVER, "close");
    MT_EQ(rds_channel_close(noisy, 0, &d.job.base), RT_OK);
    command_home(mb, &d);
    rds_channel_release(noisy);
    end_channel(quiet, mb);
    fake_stop(&fake);
    fake_stop(&other);
}

/* ---- connecting --------------------------------------------------------------------------- */

/* A port that nobody listens at, and that nobody else gets while the socket is open. */
static int refusing_port(int *port)
{
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof in;

    MT_REQUIRE(fd >= 0 && bind(fd, (struct sockaddr *)&in, sizeof in) == 0 &&
               getsockname(fd, (struct sockaddr *)&in, &len) == 0);
    *port = ntohs(in.sin_port);
    return fd;
}

static void refused(void)
{
    struct rds_options o = quick_options();
    struct rds_channel *channel;
    struct command c, expired;
    int fd = refusing_port(&o.port);
    uint64_t start;

    o.host = "127.0.0.1";
    o.backoff_base = 4 * RT_MS;
    channel = channel_to(pool, &o);
    start = rt_now();
    command_home(mb, send_echo(channel, &c, 1, RT_NEVER));
    MT_EQ(c.job.base.err, RT_ECONNECT);
    MT_EQ(c.job.maybe_run, 0);
    MT_CHECK(command_mentions(&c, "Error 111 connecting to 127.0.0.1:"));
    MT_EQ(rt_read(&channel->stats.connect_failures), 4);   /* three more than the first */
    MT_CHECK(rt_now() - start >= (8 + 16 + 32) * RT_MS);   /* backed off in between */
    rds_job_fini(&c.job);
    /* A deadline counts while nothing is connected. */
    command_home(mb, send_echo(channel, &expired, 1, rt_now() + 10 * RT_MS));
    MT_EQ(expired.job.base.err, RT_ETIMEOUT);
    MT_EQ(expired.job.maybe_run, 0);
    MT_CHECK(command_mentions(&expired, "not executed"));
    rds_job_fini(&expired.job);
    end_channel(channel, mb);
    close(fd);

    o.host = NULL;
    o.path = "/tmp/offloop-no-such-folder/s";
    o.connect_retries = 0;
    channel = channel_to(pool, &o);
    command_home(mb, send_echo(channel, &c, 1, RT_NEVER));
    MT_EQ(c.job.base.err, RT_ECONNECT);
    MT_CHECK(command_mentions(&c, o.path));
    MT_EQ(rt_read(&channel->stats.connect_failures), 1);
    rds_job_fini(&c.job);
    end_channel(channel, mb);
}

static void mute_handshake(struct peer *peer, void *user)
{
    (void)user;
    peer_sit(peer);
}

static void connect_timeout(void)
{
    struct rds_options o = quick_options();
    struct rds_channel *channel;
    struct command c;
    struct fake fake;

    fake_start(&fake, false, mute_handshake, NULL);
    o.path = fake.path;
    o.connect_timeout = 30 * RT_MS;
    o.connect_retries = 1;
    channel = channel_to(pool, &o);
    command_home(mb, send_echo(channel, &c, 1, RT_NEVER));
    MT_EQ(c.job.base.err, RT_ETIMEOUT);
    MT_EQ(c.job.maybe_run, 0);
    MT_CHECK(command_mentions(&c, "not executed"));
    MT_EQ(rt_read(&channel->stats.connect_failures), 2);
    rds_job_fini(&c.job);
    end_channel(channel, mb);
    fake_stop(&fake);
}

static void bad_hello(struct peer *peer, void *user)
{
    if (peer_command(peer) && peer_say(peer, user))
        peer_sit(peer);
}

static void handshakes(void)
{
    static const char *const answers[] = {
        "+PONG\r\n", "%1\r\n$5\r\nproto\r\n:2\r\n", "*0\r\n", ":3\r\n", "garbage\r\n",
        "$4611686018427387904\r\n",
    };
    size_t i;

    for (i = 0; i < sizeof answers / sizeof *answers; i++) {
        struct rds_options o = quick_options();
        struct rds_channel *channel;
        struct command c;
        struct fake fake;

        fake_start(&fake, false, bad_hello, (void *)(uintptr_t)answers[i]);
        o.path = fake.path;
        channel = channel_to(pool, &o);
        command_home(mb, send_echo(channel, &c, 1, RT_NEVER));
        MT_EQ(c.job.base.err, RT_EPROTOCOL);
        MT_EQ(c.job.maybe_run, 0);
        MT_CHECK(command_mentions(&c, "Protocol error"));
        rds_job_fini(&c.job);
        end_channel(channel, mb);
        fake_stop(&fake);
    }
}

/* ---- at most once ---------------------------------------------------------------------------- */

#define ONCE 4000

static atomic_uchar seen[ONCE];
static _Atomic uint64_t cut_seed;

/* Counts every command it reads, answers most, and closes after some bytes. */
static void cut_at_random(struct peer *peer, void *user)
{
    uint64_t rnd = atomic_fetch_add(&cut_seed, 1) * 77;
    unsigned left = 1 + (unsigned)(mt_rand(&rnd) % 200);

    (void)user;
    if (mt_rand(&rnd) % 4 == 0)
        left = 0; /* closed before anything is read */
    while (left-- > 0 && peer_command(peer)) {
        unsigned long number = strtoul(peer->words[1], NULL, 10);

        if (number < ONCE)
            atomic_fetch_add(&seen[number], 1);
        if (!peer_answer(peer))
            break;
    }
    if (mt_rand(&rnd) % 8 == 0) { /* a restart: nobody listens for a while */
        fake_deaf(peer->fake);
        mt_sleep_ms(3);
    }
}

static void at_most_once(bool tcp, uint64_t *rnd)
{
    struct command *commands = calloc(ONCE, sizeof *commands);
    unsigned answered = 0, maybe = 0, never = 0, i, out = 0;
    struct rds_channel *channel;
    struct rds_options o = quick_options();
    struct fake fake;

    MT_REQUIRE(commands != NULL);
    for (i = 0; i < ONCE; i++)
        atomic_store(&seen[i], 0);
    atomic_store(&cut_seed, mt_rand(rnd));
    fake_start(&fake, tcp, cut_at_random, NULL);
    o.protocol = 2;
    o.connect_retries = -1; /* go on for ever */
    o.host = "127.0.0.1";
    o.port = fake.port;
    o.path = tcp ? NULL : fake.path;
    channel = channel_to(pool, &o);
    for (i = 0; i < ONCE; i++) {
        send_echo(channel, &commands[i], i, RT_NEVER);
        for (out++; out > 300 && command_next(mb, MT_HANG_MS) != NULL;)
            out--;
    }
    for (i = 0; i < ONCE; i++) {
        struct command *c = &commands[i];

        if (!command_home(mb, c))
            break;
        if (c->job.base.err == RT_OK) {
            answered++;
            if (!echoes(c))
                MT_CHECK(!"a reply reached another command");
            MT_EQ(atomic_load(&seen[i]), 1);
        } else {
            MT_EQ(c->job.base.err, RT_ELOST);
            maybe += c->job.maybe_run;
            never += !c->job.maybe_run;
            if (atomic_load(&seen[i]) > 1)
                MT_CHECK(!"a command was sent twice");
            if (!c->job.maybe_run && atomic_load(&seen[i]) != 0)
                MT_CHECK(!"a command that was not executed reached the server");
        }
        rds_job_fini(&c->job);
    }
    printf("%u answered, %u may have run, %u not sent, %llu kept for another connection, "
           "%u connections\n", answered, maybe, never,
           (unsigned long long)rt_read(&channel->stats.retained), atomic_load(&fake.connections));
    MT_CHECK(answered > 0 && maybe > 0);
    MT_EQ(never, 0); /* what was not sent is kept and sent later */
    MT_EQ(rds_channel_depth(channel), 0);
    end_channel(channel, mb);
    fake_stop(&fake);
    free(commands);
}

/* ---- an idle connection ----------------------------------------------------------------------- */

static void close_when_idle(struct peer *peer, void *user)
{
    (void)user;
    if (peer_command(peer) && peer_answer(peer) && peer->nth % 2 == 0)
        mt_sleep_ms(2);
}

static void closed_while_idle(void)
{
    struct rds_channel *channel;
    struct fake fake;
    unsigned i;

    fake_start(&fake, false, close_when_idle, NULL);
    channel = channel_to_fake(&fake, 0);
    for (i = 0; i < 40; i++) {
        works(channel); /* noticed before, so that no command is lost to it */
        MT_EVENTUALLY(rds_channel_connections(channel) == 0);
    }
    MT_EQ(rt_read(&channel->stats.errors), 0);
    MT_EQ(atomic_load(&fake.connections), 40);
    end_channel(channel, mb);
    fake_stop(&fake);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned fds, workers;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    for (workers = 1; workers <= 2; workers++) {
        MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
        bad_bytes();
        extra();
        early();
        pushes();
        silence();
        deadline_inside_an_array();
        stops_reading();
        disconnect_in_a_command();
        flooded();
        refused();
        connect_timeout();
        handshakes();
        at_most_once(false, &rnd);
        at_most_once(true, &rnd);
        closed_while_idle();
        end_commands(pool, mb);
    }
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("faults");
}
