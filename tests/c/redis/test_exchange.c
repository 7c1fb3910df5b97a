/* The exchange with a real server: connecting every way, deep pipelines, large
 * values, cancelling, deadlines, caps, closing. */
#include <netinet/in.h>
#include <sys/socket.h>

#include "commands.h"

static struct rt_pool *pool;
static struct rt_mailbox *mb;

static void says(struct rds_channel *channel, const char *text, const char *wanted)
{
    struct command c;

    run_command(channel, mb, &c, text);
    MT_EQ(c.job.base.err, RT_OK);
    MT_STR_EQ(command_says(&c), wanted);
    rds_job_fini(&c.job);
}

/* ---- options -------------------------------------------------------------------------- */

static void bad_options(void)
{
    struct rds_channel *channel = NULL;
    struct rds_options good = server_options(), o;

#define REFUSED(change) \
    (o = good, change, MT_EQ(rds_channel_new(pool, &o, &channel), RT_EINVAL))
    REFUSED(o.path = "");
    REFUSED(o.path = NULL);
    REFUSED((o.path = NULL, o.host = "localhost", o.port = 0));
    REFUSED((o.path = NULL, o.host = "localhost", o.port = 65536));
    REFUSED((o.path = NULL, o.host = "", o.port = 6379));
    REFUSED(o.protocol = 1);
    REFUSED(o.db = -1);
    REFUSED(o.max_reply = 10);
    REFUSED(o.max_reply = UINT32_MAX);
    REFUSED(o.connect_retries = -2);
#undef REFUSED
    MT_CHECK(channel == NULL);
    rds_channel_release(NULL);
}

static bool ipv6_is_here(int port)
{
    struct sockaddr_in6 in = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port),
                               .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool there = fd >= 0 && connect(fd, (struct sockaddr *)&in, sizeof in) == 0;

    if (fd >= 0)
        close(fd);
    return there;
}

static void connect_to(const char *host, int port, int protocol)
{
    struct rds_options o = quick_options();
    struct rds_channel *channel;
    char endpoint[100];

    o.host = host;
    o.port = port;
    o.protocol = protocol;
    o.keepalive = true;
    o.keep_idle = o.keep_interval = o.keep_count = 5;
    o.client_name = "from-c";
    o.lib_name = "offloop";
    o.lib_version = "0";
    channel = channel_to(pool, &o);
    snprintf(endpoint, sizeof endpoint, "%s:%d", host, port);
    MT_STR_EQ(rds_channel_endpoint(channel), endpoint);
    says(channel, "ECHO hello", "hello");
    says(channel, "CLIENT GETNAME", "from-c"); /* any command, at this level */
    MT_EQ(rds_channel_connections(channel), 1);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    end_channel(channel, mb);
}

static void connecting(struct rds_channel *admin)
{
    const char *host = getenv("OFFLOOP_TEST_REDIS_HOST"), *port = getenv("OFFLOOP_TEST_REDIS_PORT");
    struct rds_options o;
    struct rds_channel *channel;
    struct command c;
    int number;

    MT_REQUIRE(host != NULL && port != NULL);
    number = atoi(port);
    connect_to(host, number, 2);
    connect_to(host, number, 3);
    connect_to("localhost", number, 3); /* a name; ::1 may be tried first and refuse */
    /* A server that binds 127.0.0.1 alone can be asked for more. */
    run_command(admin, mb, &c, "CONFIG SET bind 127.0.0.1 ::1");
    rds_job_fini(&c.job);
    if (ipv6_is_here(number))
        connect_to("::1", number, 3);
    else
        printf("no IPv6 here\n");

    o = quick_options();
    o.host = "no-such-host.invalid";
    o.port = number;
    o.connect_retries = 0;
    channel = channel_to(pool, &o);
    run_command(channel, mb, &c, "PING");
    MT_EQ(c.job.base.err, RT_ECONNECT);
    MT_EQ(c.job.maybe_run, 0);
    MT_CHECK(command_mentions(&c, "no-such-host.invalid"));
    rds_job_fini(&c.job);
    end_channel(channel, mb);
}

static void databases(struct rds_channel *admin)
{
    struct rds_options o = server_options();
    struct rds_channel *channel;
    struct command c;

    o.db = 3;
    channel = channel_to(pool, &o);
    do_command(channel, mb, "SET where three");
    says(channel, "GET where", "three");
    says(admin, "GET where", "(nil)");
    do_command(channel, mb, "FLUSHDB");
    end_channel(channel, mb);

    o.db = 99999;
    channel = channel_to(pool, &o);
    run_command(channel, mb, &c, "PING");
    MT_EQ(c.job.base.err, RT_EREFUSED);
    MT_EQ(c.job.maybe_run, 0);
    MT_CHECK(command_mentions(&c, "DB index is out of range"));
    rds_job_fini(&c.job);
    end_channel(channel, mb);
}

static void try_login(int protocol, const char *user, const char *password, int err,
                      const char *text)
{
    struct rds_options o = server_options();
    struct rds_channel *channel;
    struct command c;

    o.protocol = protocol;
    o.username = user;
    o.password = password;
    channel = channel_to(pool, &o);
    run_command(channel, mb, &c, "ECHO in");
    MT_EQ(c.job.base.err, err);
    MT_CHECK(command_mentions(&c, text));
    MT_CHECK(password == NULL || strstr(command_says(&c), password) == NULL);
    rds_job_fini(&c.job);
    end_channel(channel, mb);
}

static void passwords(struct rds_channel *admin)
{
    struct command c;
    int protocol;

    do_command(admin, mb, "CONFIG SET requirepass s3cret-word");
    do_command(admin, mb, "ACL SETUSER amy on >amys-word ~* +@all");
    for (protocol = 2; protocol <= 3; protocol++) {
        try_login(protocol, NULL, "s3cret-word", RT_OK, "in");
        try_login(protocol, "default", "s3cret-word", RT_OK, "in");
        try_login(protocol, "amy", "amys-word", RT_OK, "in");
        try_login(protocol, NULL, "wrong-word", RT_EAUTH, "WRONGPASS");
        try_login(protocol, "bob", "amys-word", RT_EAUTH, "WRONGPASS");
    }
    try_login(3, NULL, NULL, RT_EAUTH, "NOAUTH");
    try_login(2, NULL, NULL, RT_OK, "NOAUTH"); /* said by the first command's reply */
    do_command(admin, mb, "ACL DELUSER amy");
    /* Back to none; an empty word is no word for command_text(). */
    command_argv(&c, mb, RT_NEVER, 4, (const char *[]){ "CONFIG", "SET", "requirepass", "" },
                 (size_t[]){ 6, 3, 11, 0 });
    MT_REQUIRE(rds_channel_submit(admin, &c.job) == RT_OK);
    command_home(mb, &c);
    MT_STR_EQ(command_says(&c), "OK");
    rds_job_fini(&c.job);
}

/* ---- pipelines of any depth -------------------------------------------------------------- */

static void many(struct rds_channel *channel, unsigned window, unsigned total)
{
    struct command *commands = calloc(window, sizeof *commands), *c;
    unsigned sent = 0, home = 0;
    uint64_t number = (uint64_t)window << 32, last = number;

    MT_REQUIRE(commands != NULL);
    while (home < total) {
        if (sent < window && sent < total) {
            c = &commands[sent];
        } else {
            c = command_next(mb, MT_HANG_MS);
            if (!MT_CHECK(c != NULL))
                break;
            home++;
            if (c->job.base.err != RT_OK || !echoes(c))
                MT_CHECK(!"a reply is not its command's");
            if (c->number != ++last) /* one submitter: replies come in its order */
                MT_CHECK(!"replies came home out of order");
            rds_job_fini(&c->job);
        }
        if (sent < total) {
            sent++;
            command_echo(c, mb, RT_NEVER, ++number);
            MT_REQUIRE(rds_channel_submit(channel, &c->job) == RT_OK);
        }
    }
    MT_EQ(home, total);
    MT_EQ(rds_channel_depth(channel), 0);
    free(commands);
}

static void pipelines(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    unsigned total = (unsigned)MT_SCALE(100000);

    many(channel, 1, total / 4); /* the rest of a second, hop by hop */
    many(channel, 50, total);
    many(channel, 1000, total);
    MT_EQ(rt_read(&channel->stats.replies), total / 4 + total + total);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    MT_EQ(rt_read(&channel->stats.errors), 0);
    end_channel(channel, mb);
}

/* ---- large values ---------------------------------------------------------------------------- */

static void large_values(uint64_t *rnd)
{
    enum { MANY = 24 };
    size_t size = 1 << 20, i;
    char *value = malloc(size);
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command set[MANY], get[MANY];
    unsigned k;

    MT_REQUIRE(value != NULL);
    for (i = 0; i < size; i++)
        value[i] = (char)mt_rand(rnd);
    for (k = 0; k < MANY; k++) {
        char key[16];
        const char *argv[] = { "SET", key, value };
        size_t lens[] = { 3, 0, size - k };

        lens[1] = (size_t)snprintf(key, sizeof key, "big%u", k);
        command_argv(&set[k], mb, RT_NEVER, 3, argv, lens);
        argv[0] = "GET";
        command_argv(&get[k], mb, RT_NEVER, 2, argv, lens);
        MT_REQUIRE(rds_channel_submit(channel, &set[k].job) == RT_OK);
        MT_REQUIRE(rds_channel_submit(channel, &get[k].job) == RT_OK);
    }
    for (k = 0; k < MANY; k++) {
        struct rds_node node;

        command_home(mb, &set[k]);
        command_home(mb, &get[k]);
        node = command_node(&get[k]);
        MT_EQ(set[k].job.base.err, RT_OK);
        MT_EQ(get[k].job.base.err, RT_OK);
        MT_EQ(node.len, size - k);
        MT_CHECK(node.str != NULL && node.len == size - k && memcmp(node.str, value, node.len) == 0);
        rds_job_fini(&set[k].job);
        rds_job_fini(&get[k].job);
    }
    do_command(channel, mb, "FLUSHDB");
    MT_EQ(rt_read(&channel->stats.connects), 1);
    end_channel(channel, mb);
    free(value);
}

/* ---- over the cap: that reply fails, alone ------------------------------------------------------ */

static void over_the_cap(int protocol)
{
    static const struct {
        const char *script;
        bool fits;
    } replies[] = {
        { "return string.rep('x',1000)", true },
        { "return string.rep('x',100000)", false },                       /* the whole of it */
        { "return {1,{2,string.rep('x',100000)},3}", false },             /* inside */
        { "local_t={} for_i", true },                                     /* an error */
        { "return {string.rep('x',6000),string.rep('x',6000)}", false },  /* together */
        { "return {1,2,3}", true },
        { "return {string.rep('x',100000),string.rep('x',200000)}", false },
        { "return string.rep('x',30000000)", false },                     /* much more than a read */
        { "return {{{},{{string.rep('x',5000000)}}},string.rep('x',5000000),7}", false },
    };
    struct rds_options o = server_options();
    struct rds_channel *channel;
    struct command c[3];
    size_t i, k;

    o.max_reply = 10000;
    o.protocol = protocol;
    channel = channel_to(pool, &o);
    for (i = 0; i < sizeof replies / sizeof *replies; i++) {
        const char *argv[] = { "EVAL", replies[i].script, "0" };
        size_t lens[] = { 4, strlen(replies[i].script), 1 };

        /* Between two others, which must get their own. */
        command_echo(&c[0], mb, RT_NEVER, 10 * i + 1);
        command_argv(&c[1], mb, RT_NEVER, 3, argv, lens);
        command_echo(&c[2], mb, RT_NEVER, 10 * i + 2);
        for (k = 0; k < 3; k++)
            MT_REQUIRE(rds_channel_submit(channel, &c[k].job) == RT_OK);
        for (k = 0; k < 3; k++)
            command_home(mb, &c[k]);
        MT_CHECK(echoes(&c[0]) && echoes(&c[2]));
        MT_EQ(c[1].job.base.err, replies[i].fits ? RT_OK : RT_ETOOBIG);
        if (!replies[i].fits) {
            MT_CHECK(command_mentions(&c[1], "over the cap of 10000 bytes"));
            MT_EQ(c[1].job.maybe_run, 1);
        }
        MT_CHECK(c[1].job.reply.cap <= 3 * 10000);
        for (k = 0; k < 3; k++)
            rds_job_fini(&c[k].job);
    }
    MT_EQ(rt_read(&channel->stats.connects), 1); /* it lived through all of it */
    MT_EQ(rt_read(&channel->stats.losses), 0);
    end_channel(channel, mb);
}

/* ---- cancelling and deadlines ---------------------------------------------------------------------- */

/* Have the server stand still, and go on: what is sent meanwhile is not answered. */
static void signal_server(int sig)
{
    const char *pid = getenv("OFFLOOP_TEST_REDIS_PID");

    MT_REQUIRE(pid != NULL && kill(atoi(pid), sig) == 0);
}

static void cancelling(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command sent[20];
    unsigned i;

    do_command(channel, mb, "SET n 0");
    signal_server(SIGSTOP);
    for (i = 0; i < 20; i++) {
        command_text(&sent[i], mb, RT_NEVER, "INCR n");
        MT_REQUIRE(rds_channel_submit(channel, &sent[i].job) == RT_OK);
    }
    MT_EVENTUALLY(rt_job_state(&sent[19].job.base) == RT_JOB_RUNNING);
    for (i = 0; i < 20; i += 2)
        MT_CHECK(rds_channel_cancel(channel, &sent[i].job));
    signal_server(SIGCONT);
    for (i = 0; i < 20; i++) {
        command_home(mb, &sent[i]);
        if (i % 2) /* the others' replies are not shifted */
            MT_EQ(command_node(&sent[i]).integer, i + 1);
        MT_CHECK(!rds_channel_cancel(channel, &sent[i].job));
        rds_job_fini(&sent[i].job);
    }
    says(channel, "GET n", "20"); /* they were sent, so they were run */
    MT_EQ(rt_read(&channel->stats.dropped), 10);
    MT_EQ(rt_read(&channel->stats.cancelled), 10);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    end_channel(channel, mb);
}

/* Taken back before a connection is there: never sent. */
static void cancelled_in_the_queue(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command c[50];
    unsigned i, ran = 0;

    for (i = 0; i < 50; i++) {
        command_text(&c[i], mb, RT_NEVER, "INCR m");
        MT_REQUIRE(rds_channel_push(channel, &c[i].job) == RT_OK);
    }
    for (i = 0; i < 50; i += 2)
        MT_CHECK(rt_job_cancel(&c[i].job.base));
    rds_channel_kick(channel);
    for (i = 0; i < 50; i++) {
        command_home(mb, &c[i]);
        ran += c[i].job.base.err == RT_OK;
        if (i % 2)
            MT_EQ(command_node(&c[i]).integer, i / 2 + 1);
        else
            MT_EQ(c[i].job.base.err, RT_ECANCELLED);
        rds_job_fini(&c[i].job);
    }
    MT_EQ(ran, 25);
    says(channel, "GET m", "25");
    do_command(channel, mb, "DEL m");
    end_channel(channel, mb);
}

static void deadlines(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command short_ones[10], long_one, c;
    uint64_t patience;
    unsigned i, sent = 0;

    do_command(channel, mb, "SET n 0");
    signal_server(SIGSTOP);
    /* Until ten of them were sent: a machine that is too slow for it gets more time. */
    for (patience = 5 * RT_MS; sent < 10 && patience < 60 * RT_SEC; patience *= 4) {
        for (i = 0; i < 10; i++) {
            command_text(&short_ones[i], mb, rt_now() + patience + i * RT_MS, "INCR n");
            MT_REQUIRE(rds_channel_submit(channel, &short_ones[i].job) == RT_OK);
        }
        for (i = 0; i < 10; i++) {
            command_home(mb, &short_ones[i]);
            MT_EQ(short_ones[i].job.base.err, RT_ETIMEOUT);
            MT_CHECK(command_mentions(&short_ones[i], short_ones[i].job.maybe_run
                                                          ? "may have run" : "not executed"));
            sent += short_ones[i].job.maybe_run;
            rds_job_fini(&short_ones[i].job);
        }
    }
    MT_CHECK(sent >= 10);
    command_text(&long_one, mb, rt_now() + 600 * RT_SEC, "INCR n");
    MT_REQUIRE(rds_channel_submit(channel, &long_one.job) == RT_OK);
    signal_server(SIGCONT);
    command_home(mb, &long_one);
    MT_EQ(long_one.job.base.err, RT_OK);
    MT_EQ(command_node(&long_one).integer, sent + 1); /* its own reply, after those dropped */
    rds_job_fini(&long_one.job);
    /* A deadline that passed before the command was made. */
    command_text(&c, mb, 1, "PING");
    MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
    command_home(mb, &c);
    MT_CHECK(c.job.base.err == RT_ETIMEOUT || c.job.base.err == RT_OK);
    rds_job_fini(&c.job);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    end_channel(channel, mb);
}

/* ---- closing ------------------------------------------------------------------------------------------ */

static void closing(bool drain)
{
    enum { MANY = 100 };
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command c[MANY], close1, close2, late;
    unsigned i;

    says(channel, "ECHO x", "x");
    signal_server(SIGSTOP);
    for (i = 0; i < MANY; i++) {
        command_echo(&c[i], mb, RT_NEVER, i);
        MT_REQUIRE(rds_channel_submit(channel, &c[i].job) == RT_OK);
    }
    MT_EVENTUALLY(rt_job_state(&c[MANY - 1].job.base) == RT_JOB_RUNNING); /* all are sent */
    command_text(&close1, mb, RT_NEVER, "close");
    command_text(&close2, mb, RT_NEVER, "close");
    command_text(&late, mb, RT_NEVER, "PING");
    MT_EQ(rds_channel_close(channel, drain ? RT_NEVER : rt_now() + 10 * RT_MS, &close1.job.base),
          RT_OK);
    MT_EQ(rds_channel_close(channel, RT_NEVER, &close2.job.base), RT_ECLOSED);
    MT_EQ(rds_channel_submit(channel, &late.job), RT_ECLOSED);
    if (drain)
        signal_server(SIGCONT);
    command_home(mb, &close1);
    if (!drain)
        signal_server(SIGCONT);
    for (i = 0; i < MANY; i++) {
        MT_EQ(atomic_load(&c[i].homes), 1); /* before the close itself */
        if (drain) {
            MT_CHECK(c[i].job.base.err == RT_OK && echoes(&c[i]));
        } else {
            MT_EQ(c[i].job.base.err, RT_ECLOSED);
            MT_EQ(c[i].job.maybe_run, 1);
        }
        rds_job_fini(&c[i].job);
    }
    MT_EQ(rds_channel_close(channel, 0, &close2.job.base), RT_OK); /* is closed already */
    command_home(mb, &close2);
    MT_EQ(rds_channel_submit(channel, &late.job), RT_ECLOSED);
    MT_EQ(rds_channel_connections(channel), 0);
    rds_channel_release(channel);
}

/* Let go with commands under way: each comes home, nothing is left. */
static void released(uint64_t *rnd)
{
    unsigned round, i, fds = mt_fds(), ok = 0, closed = 0;

    for (round = 0; round < 200; round++) {
        struct rds_options o = server_options();
        struct rds_channel *channel = channel_to(pool, &o);
        struct command c[20];
        unsigned pauses = (unsigned)(mt_rand(rnd) % 5000);

        for (i = 0; i < 20; i++) {
            command_echo(&c[i], mb, RT_NEVER, i);
            MT_REQUIRE(rds_channel_submit(channel, &c[i].job) == RT_OK);
            if (round % 3 == 0 && i == 0)
                command_home(mb, &c[0]);
        }
        while (pauses-- > 0)
            MT_PAUSE();
        rds_channel_release(channel);
        for (i = 0; i < 20; i++) {
            command_home(mb, &c[i]);
            MT_CHECK(c[i].job.base.err == RT_ECLOSED || (c[i].job.base.err == RT_OK && echoes(&c[i])));
            ok += c[i].job.base.err == RT_OK;
            closed += c[i].job.base.err == RT_ECLOSED;
            rds_job_fini(&c[i].job);
        }
    }
    printf("released: %u answered, %u closed\n", ok, closed);
    MT_FDS_CLOSED(fds);
    MT_EVENTUALLY(atomic_load(&pool->poller.count) <= 1); /* the admin's is left */
}

static void never_used(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);

    rds_channel_disconnect(channel);
    end_channel(channel, mb);
    channel = channel_to(pool, &o);
    rds_channel_release(channel);
}

static void reconnecting(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    unsigned i;

    for (i = 1; i <= 20; i++) {
        says(channel, "ECHO again", "again");
        MT_EQ(rt_read(&channel->stats.connects), i);
        rds_channel_disconnect(channel);
        MT_EVENTUALLY(rds_channel_connections(channel) == 0);
    }
    end_channel(channel, mb);
}

/* The pool closes with channels that have commands under way. */
static void pool_closes(uint64_t *rnd)
{
    unsigned round, fds = mt_fds(), i;

    for (round = 0; round < 60; round++) {
        struct rds_options o = server_options();
        struct rds_channel *channel;
        struct command c[30], last;
        struct rt_pool *own;
        unsigned pauses = (unsigned)(mt_rand(rnd) % 20000);

        MT_REQUIRE(rt_pool_new(1 + round % 3, 64, &own) == RT_OK);
        channel = channel_to(own, &o);
        for (i = 0; i < 30; i++) {
            command_echo(&c[i], mb, RT_NEVER, i);
            MT_REQUIRE(rds_channel_submit(channel, &c[i].job) == RT_OK);
        }
        while (pauses-- > 0)
            MT_PAUSE();
        command_text(&last, mb, RT_NEVER, "close");
        MT_EQ(rt_pool_close(own, round % 2 ? RT_NEVER : 0, &last.job.base), RT_OK);
        if (round % 4 < 2)
            rds_channel_release(channel);
        command_home(mb, &last);
        for (i = 0; i < 30; i++) {
            command_home(mb, &c[i]);
            if (round % 2 && round % 4 >= 2)
                MT_EQ(c[i].job.base.err, RT_OK);
            rds_job_fini(&c[i].job);
        }
        if (round % 4 >= 2)
            rds_channel_release(channel);
        rt_pool_release(own);
    }
    MT_FDS_CLOSED(fds); /* regression: the last source kept its pool */
}

/* Regression: a channel's first command could come between the pool's last look
 * and its end, and then nobody was left to see it. */
struct closing_pool {
    struct rt_pool *pool;
    unsigned pauses;
    atomic_uint go;
};

static void *close_it(void *arg)
{
    struct closing_pool *c = arg;
    unsigned spins = 0, i;

    while (!atomic_load(&c->go))
        mt_relax(&spins);
    for (i = 0; i < c->pauses; i++)
        MT_PAUSE();
    rt_pool_close(c->pool, RT_NEVER, NULL);
    return NULL;
}

static void first_command_races_close(uint64_t *rnd)
{
    unsigned round, fds = mt_fds(), taken = 0, total = (unsigned)MT_SCALE(600);

    for (round = 0; round < total; round++) {
        struct closing_pool c = { .pauses = (unsigned)(mt_rand(rnd) % 400) };
        struct rds_options o = server_options();
        struct rds_channel *channel;
        struct command first, last;
        pthread_t thread;
        int err;

        MT_REQUIRE(rt_pool_new(2, 64, &c.pool) == RT_OK);
        channel = channel_to(c.pool, &o);
        command_echo(&first, mb, RT_NEVER, round);
        if (round % 2)
            MT_REQUIRE(rt_pool_start(c.pool) == RT_OK);
        thread = mt_spawn(close_it, &c);
        atomic_store(&c.go, 1);
        err = rds_channel_submit(channel, &first.job);
        if (err == RT_OK) {
            taken++;
            if (!command_home(mb, &first))
                break;
        } else {
            MT_EQ(err, RT_ECLOSED);
            MT_EQ(rt_job_state(&first.job.base), RT_JOB_IDLE);
        }
        mt_join(thread);
        rds_job_fini(&first.job);
        rds_channel_release(channel);
        command_text(&last, mb, RT_NEVER, "close");
        MT_EQ(rt_pool_close(c.pool, RT_NEVER, &last.job.base), RT_OK);
        command_home(mb, &last);
        rt_pool_release(c.pool);
    }
    printf("first command: %u of %u before the close\n", taken, total);
    MT_FDS_CLOSED(fds);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    struct rds_channel *admin;
    struct rds_options o = server_options();
    unsigned fds, workers;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    for (workers = 1; workers <= 4; workers *= 4) {
        MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
        admin = channel_to(pool, &o);
        do_command(admin, mb, "PING");
        bad_options();
        connecting(admin);
        databases(admin);
        passwords(admin);
        pipelines();
        large_values(&rnd);
        over_the_cap(2);
        over_the_cap(3);
        cancelling();
        cancelled_in_the_queue();
        deadlines();
        closing(true);
        closing(false);
        never_used();
        reconnecting();
        released(&rnd);
        pool_closes(&rnd);
        first_command_races_close(&rnd);
        do_command(admin, mb, "FLUSHALL");
        end_channel(admin, mb);
        end_commands(pool, mb);
    }
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("exchange");
}
