/* Reads of large values on a connection beside the shared one: which go there, that they
 * come back, and that nobody loses a command by it. */
#include "commands.h"
#include "fakeserver.h"
#include "rds_conn.h"

#define BYTES (RDS_LARGE + 4096)
#define KEYS 6

static struct rt_pool *pool;
static struct rt_mailbox *mb;

/* The private server; nothing happens by itself after a time. */
static struct rds_options patient_options(void)
{
    struct rds_options o = server_options();

    o.connect_timeout = RT_NEVER;
    return o;
}

static uint64_t asides(const struct rds_channel *channel)
{
    return rt_read(&channel->aside.commands);
}

/* SET aside:<key> to len bytes of a letter of its own. */
static void write_value(struct rds_channel *channel, unsigned key, size_t len)
{
    char name[32], *value = malloc(len);
    const char *argv[3] = { "SET", name, value };
    size_t lens[3] = { 3, 0, len };
    struct command c;

    MT_REQUIRE(value != NULL);
    memset(value, (int)('a' + key), len);
    lens[1] = (size_t)snprintf(name, sizeof name, "aside:%u", key);
    command_argv(&c, mb, RT_NEVER, 3, argv, lens);
    MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    rds_job_fini(&c.job);
    free(value);
}

static void begin_read(struct rds_channel *channel, struct rt_mailbox *home, struct command *c,
                       unsigned key)
{
    char text[32];

    snprintf(text, sizeof text, "GET aside:%u", key);
    command_text(c, home, RT_NEVER, text);
    c->job.reads = true;
    c->number = key;
    MT_REQUIRE(rds_channel_submit(channel, &c->job) == RT_OK);
}

/* Whether c has the value of its key, all of it. */
static bool is_right(const struct command *c)
{
    struct rds_node node = command_node(c);
    uint32_t i;

    for (i = 0; i < node.len; i++) {
        if (node.str == NULL || node.str[i] != (char)('a' + c->number))
            return false;
    }
    return node.type == RDS_STR && node.len > 0;
}

static uint32_t read_value(struct rds_channel *channel, unsigned key)
{
    struct command c;
    uint32_t len;

    begin_read(channel, mb, &c, key);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    MT_CHECK(is_right(&c));
    len = command_node(&c).len;
    rds_job_fini(&c.job);
    return len;
}

/* Read a large value until it goes aside. */
static void get_aside(struct rds_channel *channel, unsigned key)
{
    uint64_t before = asides(channel);
    unsigned i;

    for (i = 0; i < 20000 && asides(channel) == before; i++)
        MT_EQ(read_value(channel, key), BYTES);
    MT_REQUIRE(asides(channel) > before);
}

/* A channel with both connections, to a large value. */
static struct rds_channel *channel_with_aside(void)
{
    struct rds_options o = patient_options();
    struct rds_channel *channel = channel_to(pool, &o);

    write_value(channel, 0, BYTES);
    get_aside(channel, 0);
    return channel;
}

static void marks(void)
{
    char text[3000];
    uint32_t seen[1000];
    struct command c;
    unsigned i, j, same = 0;

    for (i = 0; i < 1000; i++) {
        snprintf(text, sizeof text, "GET key:%u", i);
        command_text(&c, mb, RT_NEVER, text);
        MT_EQ(rds_aside_mark(&c.job), 0); /* it may write */
        c.job.reads = true;
        seen[i] = rds_aside_mark(&c.job);
        MT_CHECK(seen[i] != 0);
        MT_EQ(rds_aside_mark(&c.job), seen[i]);
        for (j = 0; j < i; j++)
            same += seen[i] == seen[j];
        rds_job_fini(&c.job);
    }
    MT_EQ(same, 0);
    memset(text, 'x', sizeof text);
    memcpy(text, "GET ", 4);
    text[sizeof text - 1] = '\0';
    command_text(&c, mb, RT_NEVER, text);
    c.job.reads = true;
    MT_EQ(rds_aside_mark(&c.job), 0);
    rds_job_fini(&c.job);
}

/* A large value goes aside once it is known, a small one never, nor what writes. */
static void what_goes_aside(void)
{
    struct rds_options o = patient_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command c;
    uint64_t before;
    unsigned i;

    write_value(channel, 0, BYTES);
    write_value(channel, 1, 1000);
    MT_EQ(read_value(channel, 0), BYTES);
    MT_EQ(asides(channel), 0);
    MT_EQ(rds_channel_connections(channel), 1);
    get_aside(channel, 0);
    MT_EQ(rds_channel_connections(channel), 2);
    before = asides(channel);
    for (i = 0; i < 20; i++) {
        MT_EQ(read_value(channel, 0), BYTES);
        MT_EQ(read_value(channel, 1), 1000);
        run_command(channel, mb, &c, "GETRANGE aside:0 0 -1"); /* not said to be a read */
        MT_EQ(command_node(&c).len, BYTES);
        rds_job_fini(&c.job);
    }
    MT_EQ(asides(channel), before + 20);
    MT_EQ(rt_read(&channel->stats.losses), 0);
    MT_EQ(rds_channel_depth(channel), 0);
    end_channel(channel, mb);
}

/* A value that has become small goes back, and aside again when it has grown. */
static void back_again(void)
{
    struct rds_channel *channel = channel_with_aside();
    uint64_t before;
    unsigned i;

    before = asides(channel);
    write_value(channel, 0, RDS_LARGE - 1000); /* nearly large: it stays */
    for (i = 0; i < 5; i++)
        MT_EQ(read_value(channel, 0), RDS_LARGE - 1000);
    MT_EQ(asides(channel), before + 5);
    write_value(channel, 0, 500);
    for (i = 0; i < 5; i++)
        MT_EQ(read_value(channel, 0), 500);
    MT_EQ(asides(channel), before + 6);
    write_value(channel, 0, BYTES);
    MT_EQ(read_value(channel, 0), BYTES);
    MT_EQ(asides(channel), before + 6);
    MT_EQ(read_value(channel, 0), BYTES);
    MT_EQ(asides(channel), before + 7);
    end_channel(channel, mb);
}

/* Closed on request, by another login, or by the server, it is made anew. */
static void made_anew(void)
{
    struct rds_options o = patient_options();
    struct rds_channel *channel = channel_to(pool, &o);
    unsigned i;

    write_value(channel, 0, BYTES);
    for (i = 0; i < 3; i++) {
        get_aside(channel, 0);
        switch (i) {
        case 0: rds_channel_disconnect(channel); break;
        case 1: rds_channel_renewed(channel); break;
        default:
            do_command(channel, mb, "CLIENT KILL TYPE normal SKIPME yes");
            break;
        }
        MT_EVENTUALLY(rds_channel_connections(channel) == (i == 0 ? 0 : 1));
        /* Between two tries there is a second. */
        atomic_store(&channel->aside.dial_at, 0);
    }
    get_aside(channel, 0);
    MT_EQ(rt_read(&channel->stats.errors), 0);
    end_channel(channel, mb);
}

/* One that was not used for long is not relied on, and made anew. */
static void unused_for_long(void)
{
    struct rds_channel *channel = channel_with_aside();
    uint64_t before;

    before = asides(channel);
    atomic_store(&channel->aside.used_at, rt_now() - 30 * RT_SEC);
    MT_EQ(read_value(channel, 0), BYTES);
    MT_EQ(asides(channel), before + 1);
    atomic_store(&channel->aside.used_at, rt_now() - 61 * RT_SEC);
    MT_EQ(read_value(channel, 0), BYTES);
    MT_EQ(asides(channel), before + 1);
    MT_EVENTUALLY(rds_channel_connections(channel) == 1);
    atomic_store(&channel->aside.dial_at, 0);
    get_aside(channel, 0);
    end_channel(channel, mb);
}

/* Over the cap it is large all the same, whether it was dropped as it came or not. */
static void over_the_cap(void)
{
    struct rds_options o = patient_options();
    struct rds_channel *channel;
    struct command c;
    uint64_t before;
    unsigned i;

    o.max_reply = RDS_LARGE / 4;
    channel = channel_to(pool, &o);
    write_value(channel, 0, 16 * BYTES);
    for (i = 0; i < 20000 && asides(channel) < 5; i++) {
        begin_read(channel, mb, &c, 0);
        command_home(mb, &c);
        MT_EQ(c.job.base.err, RT_ETOOBIG);
        rds_job_fini(&c.job);
    }
    before = asides(channel);
    MT_CHECK(before >= 5);
    write_value(channel, 0, 100);
    for (i = 0; i < 5; i++)
        MT_EQ(read_value(channel, 0), 100);
    MT_EQ(asides(channel), before + 1);
    end_channel(channel, mb);
}

/* Closing finishes what is under way on both. */
static void closed_at_work(void)
{
    struct rds_options o = patient_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command c[8];
    unsigned i;

    for (i = 0; i < 2; i++)
        write_value(channel, i, BYTES);
    get_aside(channel, 0);
    for (i = 0; i < 8; i++)
        begin_read(channel, mb, &c[i], i % 2);
    end_channel(channel, mb);
    for (i = 0; i < 8; i++) {
        command_home(mb, &c[i]);
        MT_EQ(c[i].job.base.err, RT_OK);
        MT_CHECK(is_right(&c[i]));
        rds_job_fini(&c[i].job);
    }
}

/* The id of the newest connection that the server has. */
static unsigned long long newest_id(struct rds_channel *channel)
{
    unsigned long long newest = 0, id;
    const char *line;
    struct command c;
    char *text;

    run_command(channel, mb, &c, "CLIENT LIST");
    text = calloc(1, command_node(&c).len + 1);
    MT_REQUIRE(text != NULL);
    memcpy(text, command_node(&c).str, command_node(&c).len);
    for (line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (sscanf(line, "id=%llu", &id) == 1 && id > newest)
            newest = id;
    }
    free(text);
    rds_job_fini(&c.job);
    return newest;
}

/* It is lost with a command that is still to be sent: that goes with the rest. */
static void brought_back(void)
{
    struct rds_options o = patient_options();
    struct rds_channel *channel = channel_to(pool, &o), *knife = channel_to(pool, &o);
    struct rds_conn *aside = channel->aside.conn;
    struct command c;
    char text[64];

    do_command(knife, mb, "PING");
    write_value(channel, 0, BYTES);
    get_aside(channel, 0);
    snprintf(text, sizeof text, "CLIENT KILL ID %llu", newest_id(knife));
    MT_EVENTUALLY(rds_conn_enter(aside, 0));
    begin_read(channel, mb, &c, 0); /* it waits for us to let go */
    do_command(knife, mb, text);
    while (!rds_conn_leave(aside)) {
    }
    rt_source_attend(&aside->source, RT_READABLE | RT_HANGUP);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    MT_CHECK(is_right(&c));
    MT_EQ(rt_read(&channel->stats.connects), 2);
    MT_EQ(rt_read(&channel->stats.errors), 0);
    MT_EQ(rds_channel_depth(channel), 0);
    rds_job_fini(&c.job);
    atomic_store(&channel->aside.dial_at, 0);
    get_aside(channel, 0);
    end_channel(channel, mb);
    end_channel(knife, mb);
}

/* The same while the channel is closed: the shared connection stays for it. */
static void brought_back_at_the_end(void)
{
    struct rds_channel *channel = channel_with_aside();
    struct rds_conn *aside = channel->aside.conn;
    struct command c, last;

    MT_EVENTUALLY(rds_conn_enter(aside, 0));
    begin_read(channel, mb, &c, 0); /* it waits for us to let go */
    rds_channel_disconnect(channel);
    command_text(&last, mb, RT_NEVER, "close");
    MT_EQ(rds_channel_close(channel, RT_NEVER, &last.job.base), RT_OK);
    mt_sleep_ms(20); /* for the shared one, which has nothing to do, to close if it will */
    while (!rds_conn_leave(aside)) {
    }
    rt_source_attend(&aside->source, 0);
    command_home(mb, &last);
    MT_EQ(atomic_load(&c.homes), 1);
    MT_EQ(c.job.base.err, RT_OK);
    MT_CHECK(is_right(&c));
    rds_job_fini(&c.job);
    rds_channel_release(channel);
}

/* ---- a server with no second connection ---------------------------------------- */

static void large_to_all(struct peer *peer, void *user)
{
    static char value[BYTES];
    char header[32];

    (void)user;
    memset(value, 'a', sizeof value);
    snprintf(header, sizeof header, "$%zu\r\n", sizeof value);
    while (peer_command(peer)) {
        if (strcmp(peer->words[0], "GET") != 0) {
            if (!peer_answer(peer))
                return;
        } else if (!peer_say(peer, header) || !peer_write(peer, value, sizeof value) ||
                   !peer_say(peer, "\r\n")) {
            return;
        }
    }
}

/* The second connection is made, and nobody answers there: all go over the first. */
static void no_second_connection(void)
{
    struct rds_options o = quick_options();
    struct rds_channel *channel;
    struct fake fake;
    unsigned i;

    fake_start(&fake, false, large_to_all, NULL);
    o.path = fake.path;
    o.protocol = 2; /* no handshake but its own PING, and no answer to that */
    channel = channel_to(pool, &o);
    for (i = 0; i < 100; i++)
        MT_EQ(read_value(channel, 0), BYTES);
    MT_EQ(asides(channel), 0);
    MT_EQ(rds_channel_connections(channel), 1);
    rds_channel_release(channel);
    fake_stop(&fake);
}

/* ---- all at once ------------------------------------------------------------------ */

#define THREADS 2

struct reader {
    struct rds_channel *channel;
    uint64_t seed;
};

static _Atomic uint64_t answered, lost;

static void judge(const struct command *c, bool wanted)
{
    if (!wanted)
        return;
    rt_count(c->job.base.err == RT_OK ? &answered : &lost, 1);
    if (c->job.base.err == RT_OK ? !is_right(c) : c->job.base.err != RT_ELOST)
        MT_CHECK(!"a reply that is another's, or a failure that nobody caused");
}

/* Large and small reads, some of them cancelled. */
static void *read_on(void *arg)
{
    const struct reader *reader = arg;
    unsigned total = (unsigned)MT_SCALE(600), i, j, victim;
    uint64_t rnd = reader->seed;
    struct rt_mailbox *home;
    struct command c[4];
    bool cancelled;

    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    for (i = 0; i < total; i++) {
        for (j = 0; j < 4; j++)
            begin_read(reader->channel, home, &c[j], (unsigned)(mt_rand(&rnd) % KEYS));
        if (mt_rand(&rnd) % 2 == 0)
            mt_sleep_ms((unsigned)(mt_rand(&rnd) % 3));
        victim = (unsigned)(mt_rand(&rnd) % 16);
        cancelled = victim < 4 && rds_channel_cancel(reader->channel, &c[victim].job);
        for (j = 0; j < 4; j++) {
            if (!command_home(home, &c[j]))
                break;
            judge(&c[j], !cancelled || j != victim);
            rds_job_fini(&c[j].job);
        }
    }
    rt_mailbox_release(home);
    return NULL;
}

/* Every other key is large, and connections are cut meanwhile. */
static void all_at_once(uint64_t *rnd)
{
    struct rds_options o = patient_options();
    struct rds_channel *channel = channel_to(pool, &o), *knife = channel_to(pool, &o);
    struct reader readers[THREADS];
    pthread_t threads[THREADS];
    unsigned i;

    for (i = 0; i < KEYS; i++)
        write_value(channel, i, i % 2 == 0 ? BYTES : 100);
    get_aside(channel, 0);
    for (i = 0; i < THREADS; i++) {
        readers[i] = (struct reader){ channel, mt_rand(rnd) };
        threads[i] = mt_spawn(read_on, &readers[i]);
    }
    for (i = 0; i < 5; i++) {
        mt_sleep_ms(20);
        do_command(knife, mb, "CLIENT KILL TYPE normal SKIPME yes");
        atomic_store(&channel->aside.dial_at, 0);
    }
    for (i = 0; i < THREADS; i++)
        mt_join(threads[i]);
    printf("%llu answered, %llu lost, %llu aside, %llu connections\n",
           (unsigned long long)answered, (unsigned long long)lost,
           (unsigned long long)asides(channel),
           (unsigned long long)rt_read(&channel->stats.connects));
    MT_CHECK(answered > lost);
    MT_EQ(rds_channel_depth(channel), 0);
    end_channel(channel, mb);
    end_channel(knife, mb);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned fds = mt_fds();

    MT_REQUIRE(rt_pool_new(3, 1024, &pool) == RT_OK);
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    marks();
    what_goes_aside();
    back_again();
    made_anew();
    unused_for_long();
    over_the_cap();
    closed_at_work();
    brought_back();
    brought_back_at_the_end();
    no_second_connection();
    all_at_once(&rnd);
    end_commands(pool, mb);
    rt_mailbox_release(mb);
    MT_FDS_CLOSED(fds);
    return mt_report("aside");
}
