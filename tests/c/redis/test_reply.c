/* Replies as flat bytes: every type of RESP 2 and 3, the caps, and a property:
 * random replies, cut anywhere, give the nodes they were made from. */
#include <math.h>

#include "minitest.h"
#include "rds_reply.h"

struct stream {
    redisReader *reader;
    struct rds_builder builder;
    struct rds_arena arena; /* of the reply under way */
    char bytes[64];
    bool expected;  /* in-band replies are expected */
    bool wanted;    /* and somebody wants them */
    unsigned begun, out_of_band;
};

static bool begin(void *owner, struct rds_arena **into)
{
    struct stream *s = owner;

    s->begun++;
    *into = s->wanted ? &s->arena : NULL;
    s->arena.len = 0;
    return s->expected;
}

static void open_stream(struct stream *s, uint64_t max_bytes)
{
    memset(s, 0, sizeof *s);
    s->expected = s->wanted = true;
    s->builder.begin = begin;
    s->builder.owner = s;
    s->builder.max_bytes = max_bytes;
    rds_arena_init(&s->arena, s->bytes, sizeof s->bytes);
    s->reader = redisReaderCreateWithFunctions(&rds_reply_functions);
    MT_REQUIRE(s->reader != NULL);
    s->reader->privdata = &s->builder;
    s->builder.reader = s->reader;
}

static void close_stream(struct stream *s)
{
    redisReaderFree(s->reader);
    rds_arena_free(&s->arena);
}

/* The next in-band reply: 1 there is one, 0 not yet, -1 the stream is bad. */
static int next_reply(struct stream *s)
{
    for (;;) {
        void *reply = NULL;

        if (redisReaderGetReply(s->reader, &reply) != REDIS_OK || s->builder.bad != NULL)
            return -1;
        if (reply == NULL)
            return 0;
        if (!s->builder.out_of_band)
            return 1;
        s->out_of_band++;
    }
}

static int feed(struct stream *s, const char *data, size_t len)
{
    MT_REQUIRE(redisReaderFeed(s->reader, data, len) == REDIS_OK);
    return next_reply(s);
}

static int feed_text(struct stream *s, const char *text)
{
    return feed(s, text, strlen(text));
}

/* ---- known replies ------------------------------------------------------------- */

static void one(const char *wire, enum rds_type type, int64_t integer, double real,
                const char *str, uint32_t len)
{
    struct rds_node node;
    struct stream s;
    uint32_t at = 0;

    open_stream(&s, 1 << 20);
    if (MT_EQ(feed_text(&s, wire), 1) && MT_CHECK(rds_reply_next(&s.arena, &at, &node))) {
        MT_EQ(node.type, type);
        MT_EQ(node.len, len);
        if (type == RDS_INT || type == RDS_BOOL)
            MT_EQ(node.integer, integer);
        if (type == RDS_DOUBLE)
            MT_CHECK(isnan(real) ? isnan(node.real) : node.real == real);
        if (str != NULL)
            MT_CHECK(node.str != NULL && memcmp(node.str, str, len) == 0);
        else
            MT_CHECK(node.str == NULL);
    }
    MT_EQ(s.begun, 1);
    close_stream(&s);
}

static void scalars(void)
{
    one("+OK\r\n", RDS_STATUS, 0, 0, "OK", 2);
    one("+\r\n", RDS_STATUS, 0, 0, "", 0);
    one("-ERR no\r\n", RDS_ERROR, 0, 0, "ERR no", 6);
    one(":0\r\n", RDS_INT, 0, 0, NULL, 0);
    one(":-9223372036854775808\r\n", RDS_INT, INT64_MIN, 0, NULL, 0);
    one(":9223372036854775807\r\n", RDS_INT, INT64_MAX, 0, NULL, 0);
    one("$5\r\nhello\r\n", RDS_STR, 0, 0, "hello", 5);
    one("$0\r\n\r\n", RDS_STR, 0, 0, "", 0);
    one("$4\r\na\r\nb\r\n", RDS_STR, 0, 0, "a\r\nb", 4);
    one("$-1\r\n", RDS_NIL, 0, 0, NULL, 0);
    one("*-1\r\n", RDS_NIL, 0, 0, NULL, 0);
    one("_\r\n", RDS_NIL, 0, 0, NULL, 0);
    one("#t\r\n", RDS_BOOL, 1, 0, NULL, 0);
    one("#f\r\n", RDS_BOOL, 0, 0, NULL, 0);
    one(",3.25\r\n", RDS_DOUBLE, 0, 3.25, NULL, 0);
    one(",-1e300\r\n", RDS_DOUBLE, 0, -1e300, NULL, 0);
    one(",inf\r\n", RDS_DOUBLE, 0, INFINITY, NULL, 0);
    one(",-inf\r\n", RDS_DOUBLE, 0, -INFINITY, NULL, 0);
    one(",nan\r\n", RDS_DOUBLE, 0, NAN, NULL, 0);
    one("(123456789012345678901234567890\r\n", RDS_BIG, 0, 0, "123456789012345678901234567890", 30);
    one("=7\r\ntxt:abc\r\n", RDS_VERB, 0, 0, "abc", 3);
    one("=4\r\nmkd:\r\n", RDS_VERB, 0, 0, "", 0);
    one("*0\r\n", RDS_ARRAY, 0, 0, NULL, 0);
    one("~0\r\n", RDS_SET, 0, 0, NULL, 0);
    one("%0\r\n", RDS_MAP, 0, 0, NULL, 0);
    one("*2\r\n:1\r\n:2\r\n", RDS_ARRAY, 0, 0, NULL, 2);
    one("~1\r\n:1\r\n", RDS_SET, 0, 0, NULL, 1);
    one("%2\r\n:1\r\n:2\r\n:3\r\n:4\r\n", RDS_MAP, 0, 0, NULL, 4);
}

/* An error inside an array is a node of it and not the reply's own. */
static void mixed(void)
{
    static const char wire[] = "*3\r\n-ERR x\r\n%1\r\n+k\r\n*1\r\n$1\r\nv\r\n:7\r\n";
    static const enum rds_type wanted[] = { RDS_ARRAY, RDS_ERROR, RDS_MAP, RDS_STATUS,
                                            RDS_ARRAY, RDS_STR,   RDS_INT };
    struct rds_node node;
    struct stream s;
    uint32_t at = 0;
    size_t i;

    open_stream(&s, 1 << 20);
    MT_EQ(feed(&s, wire, sizeof wire - 1), 1);
    for (i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        MT_CHECK(rds_reply_next(&s.arena, &at, &node));
        MT_EQ(node.type, wanted[i]);
    }
    MT_CHECK(!rds_reply_next(&s.arena, &at, &node));
    MT_EQ(at, s.arena.len);
    close_stream(&s);
}

static void out_of_band(void)
{
    struct rds_node node;
    struct stream s;
    uint32_t at = 0;

    open_stream(&s, 1 << 20);
    s.expected = false; /* pushes and attributes ask for nobody */
    MT_EQ(feed_text(&s, ">2\r\n+invalidate\r\n*1\r\n+k\r\n"), 0);
    MT_EQ(feed_text(&s, "|1\r\n+ttl\r\n:3600\r\n"), 0);
    MT_EQ(s.out_of_band, 2);
    MT_EQ(s.begun, 0);
    s.expected = true;
    MT_EQ(feed_text(&s, ":5\r\n"), 1);
    MT_CHECK(rds_reply_next(&s.arena, &at, &node) && node.integer == 5);
    s.expected = false;
    MT_EQ(feed_text(&s, "+surprise\r\n"), -1);
    MT_CHECK(s.builder.bad != NULL);
    close_stream(&s);
}

static void unwanted(void)
{
    struct stream s;

    open_stream(&s, 1 << 20);
    s.wanted = false;
    MT_EQ(feed_text(&s, "*2\r\n:1\r\n$3\r\nabc\r\n"), 1);
    MT_EQ(s.arena.len, 0);
    s.wanted = true;
    MT_EQ(feed_text(&s, ":1\r\n"), 1);
    MT_EQ(s.arena.len, 9);
    close_stream(&s);
}

static void bad_streams(void)
{
    static const char *const wires[] = {
        "HTTP/1.1 200 OK\r\n", "\r\n", "$abc\r\n", "$-2\r\n", ":12x\r\n", ":\r\n", "#x\r\n",
        ",1.2.3\r\n", "_x\r\n", "*abc\r\n", "*-2\r\n", "=3\r\nabc\r\n", "=5\r\ntxtab\r\n",
        "(12a\r\n", "*99999999999999999999\r\n", "*4611686018427387904\r\n",
        "$99999999999999999999\r\n", ":9223372036854775808\r\n",
        "*1\r\n|1\r\n+a\r\n+b\r\n:1\r\n",
        /* Behind a string, in the same aggregate. */
        "*2\r\n$1\r\na\r\n$1\r\nabc", "*2\r\n$1\r\na\r\n$1\r\na\rx",
        "*2\r\n$1\r\na\r\n$01\r\nb\r\n", "*2\r\n$1\r\na\r\n$+1\r\nb\r\n",
        "*2\r\n$1\r\na\r\n$\r\n\r\n", "*2\r\n$1\r\na\r\n$-2\r\nb\r\n",
        "*2\r\n$1\r\na\r\n$1x\nb\r\n", "*2\r\n$1\r\na\r\n?1\r\nb\r\n",
    };
    size_t i;

    for (i = 0; i < sizeof wires / sizeof *wires; i++) {
        struct stream s;

        open_stream(&s, 1 << 20);
        if (!MT_EQ(feed_text(&s, wires[i]), -1))
            fprintf(stderr, "    %s", wires[i]);
        close_stream(&s);
    }
}

/* ---- caps -------------------------------------------------------------------------- */

static int nested(struct stream *s, unsigned depth)
{
    unsigned i;
    int status = 0;

    for (i = 0; i < depth && status == 0; i++)
        status = feed_text(s, "*1\r\n");
    return status == 0 ? feed_text(s, ":1\r\n") : status;
}

static void depth(void)
{
    struct stream s;

    open_stream(&s, 1 << 20);
    MT_EQ(nested(&s, RDS_MAX_DEPTH), 1);
    MT_EQ(nested(&s, RDS_MAX_DEPTH), 1);
    MT_EQ(nested(&s, RDS_MAX_DEPTH + 1), -1);
    MT_STR_EQ(s.builder.bad, "a reply nested too deep");
    close_stream(&s);
    open_stream(&s, 1 << 20);
    s.wanted = false; /* dropped replies are no way around it */
    MT_EQ(nested(&s, 10000), -1);
    close_stream(&s);
}

static void size(void)
{
    static char big[4096];
    struct rds_node node;
    struct stream s;
    uint32_t at = 0;
    unsigned i;

    memset(big, 'x', sizeof big);
    open_stream(&s, 1024);
    MT_EQ(feed_text(&s, "$2000\r\n"), 0);
    MT_EQ(feed(&s, big, 2000), 0);
    MT_EQ(feed_text(&s, "\r\n"), 1);
    MT_CHECK(s.builder.too_big);
    MT_EQ(feed_text(&s, ":1\r\n"), 1); /* the next one is as good as ever */
    MT_CHECK(!s.builder.too_big);
    MT_CHECK(rds_reply_next(&s.arena, &at, &node) && node.integer == 1);
    /* Many small nodes count as well, and are not kept. */
    MT_EQ(feed_text(&s, "*1000\r\n"), 0);
    for (i = 0; i < 999; i++)
        MT_EQ(feed_text(&s, ":1\r\n"), 0);
    MT_EQ(feed_text(&s, ":1\r\n"), 1);
    MT_CHECK(s.builder.too_big);
    MT_CHECK(s.arena.cap < 4096);
    /* Strings of an aggregate, all there at once. */
    at = 0;
    for (i = 0; i < 200; i++)
        memcpy(big + 11 * i, "$5\r\nhello\r\n", 11);
    MT_EQ(feed_text(&s, "*101\r\n"), 0);
    MT_EQ(feed(&s, big, 11 * 101), 1);
    MT_CHECK(!s.builder.too_big);
    MT_EQ(s.arena.len, 5 + 101 * 10);
    MT_EQ(feed_text(&s, "*102\r\n"), 0);
    MT_EQ(feed(&s, big, 11 * 102), 1);
    MT_CHECK(s.builder.too_big);
    /* What follows an aggregate of strings is not one of them. */
    MT_EQ(feed_text(&s, "*2\r\n"), 0);
    MT_EQ(feed(&s, big, 11 * 3), 1);
    MT_CHECK(!s.builder.too_big);
    MT_EQ(s.arena.len, 25);
    MT_EQ(next_reply(&s), 1);
    MT_EQ(s.arena.len, 10);
    memset(big, 'x', sizeof big);
    /* Just under the cap. */
    MT_EQ(feed_text(&s, "$1019\r\n"), 0);
    MT_EQ(feed(&s, big, 1019), 0);
    MT_EQ(feed_text(&s, "\r\n"), 1);
    MT_CHECK(!s.builder.too_big);
    MT_EQ(s.arena.len, 1024);
    close_stream(&s);
}

static void texts(void)
{
    char small[4], middle[16];
    struct rds_node node;
    struct rds_arena a;
    uint32_t at = 0;

    rds_arena_init(&a, middle, sizeof middle);
    rds_arena_set_text(&a, RDS_ERROR, "a text that is longer than its buffer");
    MT_CHECK(a.heap);
    MT_CHECK(rds_reply_next(&a, &at, &node));
    MT_EQ(node.type, RDS_ERROR);
    MT_EQ(node.len, 37);
    MT_CHECK(memcmp(node.str, "a text that is longer than its buffer", 37) == 0);
    rds_arena_set_text(&a, RDS_ERROR, ""); /* replaced, not added */
    at = 0;
    MT_CHECK(rds_reply_next(&a, &at, &node) && node.len == 0);
    MT_CHECK(!rds_reply_next(&a, &at, &node));
    rds_arena_free(&a);
    rds_arena_free(&a);
    rds_arena_init(&a, small, sizeof small);
    rds_arena_set_text(&a, RDS_STATUS, "x");
    MT_EQ(a.len, 6);
    rds_arena_free(&a);
}

/* ---- the property -------------------------------------------------------------------- */

struct bytes {
    char *data;
    size_t len, cap;
};

static void add(struct bytes *b, const void *data, size_t len)
{
    if (b->len + len > b->cap) {
        b->cap = 2 * (b->len + len) + 64;
        b->data = realloc(b->data, b->cap);
        MT_REQUIRE(b->data != NULL);
    }
    if (len > 0)
        memcpy(b->data + b->len, data, len);
    b->len += len;
}

static void add_line(struct bytes *b, char mark, const char *text)
{
    add(b, &mark, 1);
    add(b, text, strlen(text));
    add(b, "\r\n", 2);
}

static void add_node(struct bytes *b, enum rds_type type, const void *payload, size_t len)
{
    char mark = (char)type;

    add(b, &mark, 1);
    add(b, payload, len);
}

static void add_string(struct bytes *b, enum rds_type type, const char *str, size_t len)
{
    uint32_t n = (uint32_t)len;

    add_node(b, type, &n, sizeof n);
    add(b, str, len);
}

static void random_text(uint64_t *rnd, char *out, size_t len, bool line)
{
    size_t i;

    for (i = 0; i < len; i++)
        out[i] = line ? (char)('a' + mt_rand(rnd) % 26) : (char)mt_rand(rnd);
}

/* A bulk string, which may hold anything. */
static void invent_string(uint64_t *rnd, struct bytes *wire, struct bytes *nodes)
{
    char text[700], line[64];
    size_t len = mt_rand(rnd) % (mt_rand(rnd) % 8 == 0 ? 600 : 20);

    random_text(rnd, text, len, false);
    snprintf(line, sizeof line, "%zu", len);
    add_line(wire, '$', line);
    add(wire, text, len);
    add(wire, "\r\n", 2);
    add_string(nodes, RDS_STR, text, len);
}

/* One random reply: its bytes on the wire and the nodes it must become. */
static void invent(uint64_t *rnd, unsigned level, struct bytes *wire, struct bytes *nodes)
{
    char text[700], line[64];
    unsigned kind = (unsigned)(mt_rand(rnd) % (level < 5 ? 14 : 10));
    size_t len = mt_rand(rnd) % (mt_rand(rnd) % 8 == 0 ? 600 : 20);
    int64_t integer = (int64_t)(mt_rand(rnd) >> mt_rand(rnd) % 64);
    double real = (double)integer / 16.0;
    uint32_t n = (uint32_t)(mt_rand(rnd) % 6), i;
    char truth = (char)(len % 2);
    bool strings = mt_rand(rnd) % 3 == 0; /* an aggregate of strings, or nearly */

    switch (kind) {
    case 0:
    case 1:
        invent_string(rnd, wire, nodes);
        break;
    case 2:
    case 3:
        random_text(rnd, text, len, true);
        text[len] = '\0';
        add_line(wire, kind == 2 ? '+' : '-', text);
        add_string(nodes, kind == 2 ? RDS_STATUS : RDS_ERROR, text, len);
        break;
    case 4:
        snprintf(line, sizeof line, "%" PRId64, integer);
        add_line(wire, ':', line);
        add_node(nodes, RDS_INT, &integer, sizeof integer);
        break;
    case 5:
        snprintf(line, sizeof line, "%.17g", real);
        add_line(wire, ',', line);
        add_node(nodes, RDS_DOUBLE, &real, sizeof real);
        break;
    case 6:
        add_line(wire, len % 3 == 0 ? '_' : len % 3 == 1 ? '$' : '*', len % 3 == 0 ? "" : "-1");
        add_node(nodes, RDS_NIL, NULL, 0);
        break;
    case 7:
        add_line(wire, '#', truth ? "t" : "f");
        add_node(nodes, RDS_BOOL, &truth, 1);
        break;
    case 8:
        snprintf(line, sizeof line, "%" PRId64 "%" PRIu64, integer, mt_rand(rnd));
        add_line(wire, '(', line);
        add_string(nodes, RDS_BIG, line, strlen(line));
        break;
    case 9:
        memcpy(text, "txt:", 4);
        random_text(rnd, text + 4, len, false);
        snprintf(line, sizeof line, "%zu", len + 4);
        add_line(wire, '=', line);
        add(wire, text, len + 4);
        add(wire, "\r\n", 2);
        add_string(nodes, RDS_VERB, text + 4, len);
        break;
    default:
        if (strings)
            n = (uint32_t)(mt_rand(rnd) % 40);
        snprintf(line, sizeof line, "%u", n);
        add_line(wire, kind == 12 ? '~' : kind == 13 ? '%' : '*', line);
        n *= kind == 13 ? 2 : 1;
        add_node(nodes, kind == 12 ? RDS_SET : kind == 13 ? RDS_MAP : RDS_ARRAY, &n, sizeof n);
        for (i = 0; i < n; i++) {
            if (strings && mt_rand(rnd) % 16 != 0)
                invent_string(rnd, wire, nodes);
            else
                invent(rnd, level + 1, wire, nodes);
        }
        break;
    }
}

static void add_out_of_band(uint64_t *rnd, struct bytes *wire)
{
    struct bytes ignored = { NULL, 0, 0 };
    unsigned n = (unsigned)(mt_rand(rnd) % 4);
    bool push = mt_rand(rnd) % 2;
    char line[16];

    snprintf(line, sizeof line, "%u", n);
    add_line(wire, push ? '>' : '|', line);
    for (n *= push ? 1 : 2; n > 0; n--)
        invent(rnd, 3, wire, &ignored);
    free(ignored.data);
}

/* Walk an arena node by node: the reader must agree with its bytes. */
static void walk(const struct rds_arena *a)
{
    struct rds_node node;
    uint32_t at = 0, before = 0;

    while (rds_reply_next(a, &at, &node)) {
        if (at <= before || at > a->len)
            MT_CHECK(!"a node reaches past its arena");
        before = at;
    }
    MT_EQ(at, a->len);
}

static void property(uint64_t *rnd)
{
    enum { REPLIES = 50 };
    unsigned round, total = (unsigned)MT_SCALE(1500), i;

    for (round = 0; round < total; round++) {
        struct bytes wire = { NULL, 0, 0 }, nodes[REPLIES];
        unsigned done = 0;
        size_t at = 0;
        struct stream s;

        memset(nodes, 0, sizeof nodes);
        for (i = 0; i < REPLIES; i++) {
            if (mt_rand(rnd) % 5 == 0)
                add_out_of_band(rnd, &wire);
            invent(rnd, 0, &wire, &nodes[i]);
        }
        open_stream(&s, 1 << 24);
        while (at < wire.len) {
            size_t piece = 1 + mt_rand(rnd) % (round % 3 == 0 ? 3 : round % 3 == 1 ? 100 : 20000);
            int status;

            piece = piece < wire.len - at ? piece : wire.len - at;
            for (status = feed(&s, wire.data + at, piece); status == 1; status = next_reply(&s)) {
                MT_REQUIRE(done < REPLIES);
                if (s.arena.len != nodes[done].len ||
                    memcmp(s.arena.data, nodes[done].data, s.arena.len) != 0)
                    MT_CHECK(!"a reply became other nodes");
                walk(&s.arena);
                done++;
            }
            MT_REQUIRE(status == 0);
            at += piece;
        }
        MT_EQ(done, REPLIES);
        MT_EQ(s.begun, REPLIES);
        close_stream(&s);
        for (i = 0; i < REPLIES; i++)
            free(nodes[i].data);
        free(wire.data);
    }
}

/* Bytes changed at random: any answer will do that reads no foreign memory. */
static void fuzz(uint64_t *rnd)
{
    unsigned round, total = (unsigned)MT_SCALE(20000), i, bad = 0;

    for (round = 0; round < total; round++) {
        struct bytes wire = { NULL, 0, 0 }, nodes = { NULL, 0, 0 };
        struct stream s;
        int status;

        for (i = 0; i < 5; i++)
            invent(rnd, 0, &wire, &nodes);
        for (i = 0; i < 1 + round % 4; i++)
            wire.data[mt_rand(rnd) % wire.len] = "*$:+-_#,(=~%>|0123456789\r\n"[mt_rand(rnd) % 26];
        open_stream(&s, 1 << 16);
        for (status = feed(&s, wire.data, wire.len); status == 1; status = next_reply(&s))
            walk(&s.arena);
        bad += status < 0;
        close_stream(&s);
        free(wire.data);
        free(nodes.data);
    }
    printf("%u of %u changed streams were refused\n", bad, total);
    MT_CHECK(bad > 0 && bad < total);
}

int main(void)
{
    uint64_t rnd = mt_seed();

    scalars();
    mixed();
    out_of_band();
    unwanted();
    bad_streams();
    depth();
    size();
    texts();
    property(&rnd);
    fuzz(&rnd);
    return mt_report("reply");
}
