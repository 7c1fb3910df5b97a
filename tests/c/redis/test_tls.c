/* TLS between a channel and a server: who is refused and why, big and many commands,
 * what the protocol does in the middle of a stream, sessions, forks. */
#include <unistd.h>

#include "leases.h"
#include "secured.h"

#define BIG ((size_t)3 << 20)

static struct rt_pool *pool;
static struct rt_mailbox *mb;

/* What is tested now, for a reader of a failure. */
static void tell(const char *what)
{
    printf("%s\n", what);
    fflush(stdout);
}

static void echo(struct rds_channel *channel, uint64_t number)
{
    struct command c;

    command_echo(&c, mb, RT_NEVER, number);
    MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
    command_home(mb, &c);
    if (!MT_EQ(c.job.base.err, RT_OK) || !MT_CHECK(echoes(&c)))
        fprintf(stderr, "    %s\n", command_says(&c));
    rds_job_fini(&c.job);
}

/* ECHO of so many bytes, which follow from the number. */
static void send_big(struct rds_channel *channel, struct command *c, size_t len, unsigned number)
{
    char *bytes = malloc(len);
    const char *argv[] = { "ECHO", bytes };
    const size_t lens[] = { 4, len };
    size_t i;

    MT_REQUIRE(bytes != NULL);
    for (i = 0; i < len; i++)
        bytes[i] = (char)(number * 31 + i * 7 + (i >> 9));
    command_argv(c, mb, RT_NEVER, 2, argv, lens);
    c->number = number;
    free(bytes);
    MT_REQUIRE(rds_channel_submit(channel, &c->job) == RT_OK);
}

static void expect_big(struct command *c, size_t len)
{
    struct rds_node node;
    size_t i, wrong = 0;

    command_home(mb, c);
    if (!MT_EQ(c->job.base.err, RT_OK)) {
        fprintf(stderr, "    %s\n", command_says(c));
        rds_job_fini(&c->job);
        return;
    }
    node = command_node(c);
    MT_EQ(node.len, len);
    for (i = 0; i < len && i < node.len; i++)
        wrong += node.str[i] != (char)(c->number * 31 + i * 7 + (i >> 9));
    MT_EQ(wrong, 0);
    rds_job_fini(&c->job);
}

/* Many small ones at once. */
static void send_many(struct rds_channel *channel, unsigned count)
{
    struct command *c = calloc(count, sizeof *c);
    unsigned i, wrong = 0;

    MT_REQUIRE(c != NULL);
    for (i = 0; i < count; i++) {
        command_echo(&c[i], mb, RT_NEVER, i);
        MT_REQUIRE(rds_channel_push(channel, &c[i].job) == RT_OK);
        if (i % 100 == 0)
            rds_channel_kick(channel);
    }
    rds_channel_kick(channel);
    for (i = 0; i < count; i++) {
        command_home(mb, &c[i]);
        wrong += c[i].job.base.err != RT_OK || !echoes(&c[i]);
    }
    MT_EQ(wrong, 0);
    for (i = 0; i < count; i++)
        rds_job_fini(&c[i].job);
    free(c);
}

/* ---- traffic ----------------------------------------------------------------------------- */

static void traffic(struct front_options options)
{
    struct rds_channel *channel;
    struct command big[3];
    struct front front;
    unsigned i;

    front_to_server(&front, options);
    channel = channel_to_front(pool, &front);
    for (i = 0; i < 50; i++)
        echo(channel, i);
    for (i = 0; i < 3; i++)
        send_big(channel, &big[i], BIG + i, i);
    send_many(channel, (unsigned)MT_SCALE(20000));
    for (i = 0; i < 3; i++)
        expect_big(&big[i], BIG + i);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    MT_EQ(rt_read(&channel->stats.tls_handshakes), 1);
    MT_EQ(atomic_load(&front.handshakes), 1);
    if (options.rekey_every != 0)
        MT_CHECK(atomic_load(&front.rekeys) > 3);
    if (options.renegotiate_every != 0)
        MT_CHECK(atomic_load(&front.renegotiations) > 3);
    end_channel(channel, mb);
    MT_EVENTUALLY(atomic_load(&front.farewells) == 1);
    front_stop(&front);
}

/* The peer reads nothing, so that a write is left half done; meanwhile more is asked
 * for, and the buffer that is to be written again has moved. */
static void deaf_peer(struct front_options options)
{
    struct rds_channel *channel;
    struct command big[4];
    struct front front;
    unsigned i;

    front_to_server(&front, options);
    channel = channel_to_front(pool, &front);
    echo(channel, 1);
    atomic_store(&front.deaf, true);
    for (i = 0; i < 4; i++) {
        send_big(channel, &big[i], 2 * BIG, i);
        mt_sleep_ms(20);
    }
    atomic_store(&front.deaf, false);
    for (i = 0; i < 4; i++)
        expect_big(&big[i], 2 * BIG);
    send_many(channel, 1000);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    end_channel(channel, mb);
    front_stop(&front);
}

/* ---- refusals ------------------------------------------------------------------------------ */

struct refusal {
    struct front_options front;
    const char *host;     /* NULL: localhost */
    const char *mentions;
    int err;
    bool lax;             /* the name is not checked */
    bool blind;           /* nothing is */
    int min_version;
    const char *cert_file, *ca_file;
    bool answered;        /* it works after all */
    uint64_t within;      /* ns to connect */
};

static void refused(struct refusal r)
{
    struct rds_tls_options tls;
    struct rds_channel *channel;
    struct rds_options o;
    struct front front;
    struct command c;
    uint64_t began;

    front_to_server(&front, r.front);
    o = front_address(&front);
    tls = trusting(&front);
    if (r.host != NULL)
        tls.host = r.host;
    tls.check_host = !r.lax && !r.blind;
    tls.verify = !r.blind;
    if (r.min_version != 0)
        tls.min_version = r.min_version;
    tls.cert_file = r.cert_file;
    tls.ca_file = r.ca_file;
    o.tls = &tls;
    o.connect_retries = 0;
    if (r.within != 0)
        o.connect_timeout = r.within;
    channel = channel_to(pool, &o);
    command_echo(&c, mb, RT_NEVER, 7);
    began = rt_now();
    MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
    command_home(mb, &c);
    if (r.answered) {
        if (!MT_EQ(c.job.base.err, RT_OK))
            fprintf(stderr, "    %s\n", command_says(&c));
    } else {
        MT_EQ(c.job.base.err, r.err);
        MT_CHECK(!c.job.maybe_run);
        MT_CHECK(command_mentions(&c, r.mentions));
        MT_CHECK(command_mentions(&c, rds_channel_endpoint(channel)));
        MT_CHECK(rt_now() - began >= (r.err == RT_ETIMEOUT ? r.within : 0));
        MT_EQ(rt_read(&channel->stats.connects), 0);
        MT_EQ(rt_read(&channel->stats.connect_failures), 1);
    }
    rds_job_fini(&c.job);
    end_channel(channel, mb);
    front_stop(&front);
}

static void refusals(void)
{
    static const struct front_options good = { 0 };

    refused((struct refusal){ .front = good, .host = "elsewhere.test", .err = RT_ETLS,
                              .mentions = "Hostname mismatch" });
    refused((struct refusal){ .front = good, .host = "127.0.0.2", .err = RT_ETLS,
                              .mentions = "IP address mismatch" });
    refused((struct refusal){ .front = good, .host = "127.0.0.1", .answered = true });
    refused((struct refusal){ .front = good, .host = "elsewhere.test", .lax = true, .answered = true });
    refused((struct refusal){ .front.expired = true, .mentions = "has expired", .err = RT_ETLS });
    refused((struct refusal){ .front.names = "DNS:*.example.test", .host = "a.example.test",
                              .answered = true });
    refused((struct refusal){ .front.names = "DNS:*.example.test", .host = "a.b.example.test",
                              .mentions = "Hostname mismatch", .err = RT_ETLS });
    refused((struct refusal){ .front.names = "DNS:a*.example.test", .host = "ab.example.test",
                              .mentions = "Hostname mismatch", .err = RT_ETLS });
    refused((struct refusal){ .front.expired = true, .blind = true, .answered = true });
    refused((struct refusal){ .front.version = TLS1_2_VERSION, .min_version = TLS1_3_VERSION,
                              .mentions = "version", .err = RT_ETLS });
    refused((struct refusal){ .front = { .version = TLS1_3_VERSION, .asks_client = true },
                              .mentions = "certificate required", .err = RT_ETLS });
    refused((struct refusal){ .front = { .version = TLS1_2_VERSION, .asks_client = true },
                              .mentions = "handshake failure", .err = RT_ETLS });
    refused((struct refusal){ .front.is_plain = true, .mentions = "is it a port for TLS?",
                              .err = RT_ETLS });
    refused((struct refusal){ .front.ends = true, .mentions = "lost while connecting",
                              .err = RT_ECONNECT });
    refused((struct refusal){ .front.stalls = true, .mentions = "handshake of TLS",
                              .err = RT_ETIMEOUT, .within = 500 * RT_MS });
    refused((struct refusal){ .front = good, .cert_file = "/nowhere/cert", .err = RT_ETLS,
                              .mentions = "/nowhere/cert: No such file" });
    refused((struct refusal){ .front = good, .ca_file = "/dev/null", .err = RT_ETLS,
                              .mentions = "ssl_ca_certs /dev/null" });
}

/* Another authority than the one that is trusted; it is trusted once the file says so. */
static void files_are_read_again(void)
{
    char path[] = "/tmp/offloop-ca-XXXXXX";
    int fd = mkstemp(path);
    struct rds_tls_options tls;
    struct rds_channel *channel;
    struct rds_options o;
    struct front front;
    struct command c;
    unsigned tries = 0;
    FILE *file;

    MT_REQUIRE(fd >= 0);
    front_to_server(&front, (struct front_options){ 0 });
    file = fdopen(fd, "w");
    MT_REQUIRE(file != NULL && fputs(front.ca_pem, file) >= 0 && fclose(file) == 0);
    o = front_address(&front);
    tls = trusting(&front);
    tls.ca_data = NULL;
    tls.ca_file = path;
    o.tls = &tls;
    o.connect_retries = 0;
    channel = channel_to(pool, &o);
    echo(channel, 1);
    front_change(&front, &(struct front_options){ 0 });
    MT_EVENTUALLY(rds_channel_connections(channel) == 0);
    run_command(channel, mb, &c, "PING");
    MT_EQ(c.job.base.err, RT_ETLS);
    MT_CHECK(command_mentions(&c, "CERTIFICATE_VERIFY_FAILED"));
    rds_job_fini(&c.job);
    file = fopen(path, "w");
    MT_REQUIRE(file != NULL && fputs(front.ca_pem, file) >= 0 && fclose(file) == 0);
    do {
        mt_sleep_ms(50);
        run_command(channel, mb, &c, "PING");
        rds_job_fini(&c.job);
    } while (c.job.base.err == RT_ETLS && ++tries < 200);
    MT_EQ(c.job.base.err, RT_OK);
    end_channel(channel, mb);
    front_stop(&front);
    unlink(path);
}

/* ---- sessions, forks ----------------------------------------------------------------------- */

static void sessions(int version)
{
    struct rds_channel *channel;
    struct front front;
    unsigned i;

    front_to_server(&front, (struct front_options){ .version = version });
    channel = channel_to_front(pool, &front);
    for (i = 0; i < 10; i++) {
        echo(channel, i);
        if (i % 2 == 0)
            rds_channel_disconnect(channel);
        else
            atomic_fetch_add(&front.cuts, 1);
        MT_EVENTUALLY(rds_channel_connections(channel) == 0);
    }
    MT_EQ(rt_read(&channel->stats.tls_handshakes), 10);
    MT_EQ(rt_read(&channel->stats.tls_resumed), 9);
    MT_EQ(atomic_load(&front.resumed), 9);
    end_channel(channel, mb);
    front_stop(&front);
}

/* Leases connect at the same time, and share what is shared. */
static void leases(void)
{
    enum { MANY = 40 };
    struct command c[MANY];
    struct rds_channel *channel;
    struct front front;
    unsigned i;

    front_to_server(&front, (struct front_options){ .fragment = 512 });
    channel = channel_to_front(pool, &front);
    for (i = 0; i < MANY; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP tls-list 0");
    BLOCKED_ARE(channel, mb, MANY);
    for (i = 0; i < MANY; i++)
        do_command(channel, mb, "RPUSH tls-list x");
    for (i = 0; i < MANY; i++) {
        command_home(mb, &c[i]);
        MT_EQ(c[i].job.base.err, RT_OK);
        rds_job_fini(&c[i].job);
    }
    MT_EQ(rt_read(&channel->stats.tls_handshakes), MANY + 1);
    MT_EVENTUALLY(leases_idle(channel) == MANY);
    end_channel(channel, mb);
    MT_EVENTUALLY(atomic_load(&front.farewells) == MANY + 1);
    front_stop(&front);
}

static void child(void *arg)
{
    struct rds_channel *channel = arg;

    alarm(60);
    rds_channel_abandon(channel);
    rt_pool_abandon(pool);
    rds_channel_release(channel);
    if (MT_FORK_AT_REST)
        _exit(0); /* what the parent's other threads have is a leak for the sanitizer */
    exit(0); /* with OpenSSL's own end */
}

static void forks(void)
{
    struct rds_channel *channel;
    struct front front;
    unsigned i;

    front_to_server(&front, (struct front_options){ 0 });
    channel = channel_to_front(pool, &front);
    for (i = 0; i < 5; i++) {
        echo(channel, i);
        rest(pool);
        MT_EQ(mt_in_child(child, channel), 0);
        MT_EQ(atomic_load(&front.farewells), 0);
        echo(channel, 100 + i);
    }
    MT_EQ(rt_read(&channel->stats.connects), 1);
    end_channel(channel, mb);
    MT_EVENTUALLY(atomic_load(&front.farewells) == 1);
    front_stop(&front);
}

int main(void)
{
    unsigned fds;

    (void)mt_seed();
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    MT_REQUIRE(rt_pool_new(3, 64, &pool) == RT_OK);
    tell("traffic: .version = 1_3");
    traffic((struct front_options){ .version = TLS1_3_VERSION });
    tell("traffic: .version = 1_2");
    traffic((struct front_options){ .version = TLS1_2_VERSION });
    tell("traffic: .version = 1_3, .fragment = 512, .rekey_every = 20000");
    traffic((struct front_options){ .version = TLS1_3_VERSION, .fragment = 512,
                                    .rekey_every = 20000 });
    tell("traffic: .version = 1_2, .fragment = 512, .renegotiate_every = 200000");
    traffic((struct front_options){ .version = TLS1_2_VERSION, .fragment = 512,
                                    .renegotiate_every = 200000 });
    tell("deaf_peer: .version = 1_2");
    deaf_peer((struct front_options){ .version = TLS1_2_VERSION });
    tell("deaf_peer: .version = 1_3, .rekey_every = 100000");
    deaf_peer((struct front_options){ .version = TLS1_3_VERSION, .rekey_every = 100000 });
    tell("refusals");
    refusals();
    tell("files are read again");
    files_are_read_again();
    tell("sessions");
    sessions(TLS1_3_VERSION);
    sessions(TLS1_2_VERSION);
    tell("leases");
    leases();
    tell("forks");
    forks();
    end_commands(pool, mb);
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("tls");
}
