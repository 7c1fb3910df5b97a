/* argv to RESP: exact bytes and sizes, limits, and a property test against an
 * encoder that takes the long way. */
#include <stdarg.h>

#include "minitest.h"
#include "rds_cmd.h"

/* ---- the long way ------------------------------------------------------------- */

struct text {
    char *data;
    size_t len, cap;
};

static void append(struct text *t, const char *data, size_t len)
{
    if (t->len + len > t->cap) {
        t->cap = (t->len + len) * 2;
        t->data = realloc(t->data, t->cap);
        MT_REQUIRE(t->data != NULL);
    }
    if (len > 0)
        memcpy(t->data + t->len, data, len);
    t->len += len;
}

static void append_number(struct text *t, const char *before, size_t number)
{
    char line[40];

    append(t, line, (size_t)snprintf(line, sizeof line, "%s%zu\r\n", before, number));
}

static void long_way(struct text *t, size_t argc, const char *const *argv, const size_t *lens)
{
    size_t i;

    append_number(t, "*", argc);
    for (i = 0; i < argc; i++) {
        append_number(t, "$", lens[i]);
        append(t, argv[i], lens[i]);
        append(t, "\r\n", 2);
    }
}

static bool same(const struct rds_job *job, const struct text *t)
{
    return job->request_len == t->len && memcmp(job->request, t->data, t->len) == 0;
}

/* ---- tests ---------------------------------------------------------------------- */

static void known_bytes(void)
{
    static const char *const set[] = { "SET", "k\0\r\n", "" };
    static const size_t set_lens[] = { 3, 4, 0 };
    static const char wanted[] = "*3\r\n$3\r\nSET\r\n$4\r\nk\0\r\n\r\n$0\r\n\r\n";
    struct rds_job job;

    rds_job_init(&job, NULL, RT_NEVER);
    MT_EQ(rds_cmd_encode(&job, 3, set, set_lens), RT_OK);
    MT_EQ(job.request_len, sizeof wanted - 1);
    MT_EQ(memcmp(job.request, wanted, sizeof wanted - 1), 0);
    MT_CHECK(job.request == job.inline_bytes); /* short: nothing on the heap */
    rds_job_fini(&job);
    rds_job_fini(&job); /* twice is harmless */
}

static void decimals(void)
{
    uint64_t values[] = { 0, 9, 10, 99, 100, 12345, UINT32_MAX, UINT64_MAX - 1, UINT64_MAX };
    char ours[24], wanted[24];
    uint64_t power = 1;
    size_t i, j;

    for (i = 0; i < sizeof values / sizeof *values + 60; i++) {
        uint64_t v = i < 9 ? values[i] : (i % 3 == 0 ? power - 1 : i % 3 == 1 ? power : power + 1);
        size_t n = rds_put_decimal(ours, v);

        ours[n] = '\0';
        snprintf(wanted, sizeof wanted, "%" PRIu64, v);
        MT_STR_EQ(ours, wanted);
        MT_EQ(rds_decimal_size(v), strlen(wanted));
        if (i >= 9 && i % 3 == 2)
            power *= 10;
    }
    for (j = 0; j < 200000; j = j < 2000 ? j + 1 : j + 777) {
        snprintf(wanted, sizeof wanted, "%zu", j);
        MT_EQ(rds_cmd_arg_size(j), 1 + strlen(wanted) + 2 + j + 2);
    }
}

/* Around the size where the job's own buffer is left. */
static void inline_or_not(void)
{
    char value[RDS_INLINE + 40];
    const char *argv[2] = { "GET", value };
    struct rds_job job;
    size_t len;

    memset(value, 'v', sizeof value);
    for (len = 0; len < sizeof value; len++) {
        size_t lens[2] = { 3, len };
        struct text t = { NULL, 0, 0 };

        long_way(&t, 2, argv, lens);
        rds_job_init(&job, NULL, RT_NEVER);
        MT_EQ(rds_cmd_encode(&job, 2, argv, lens), RT_OK);
        MT_CHECK(same(&job, &t));
        MT_EQ(job.request == job.inline_bytes, t.len <= RDS_INLINE);
        rds_job_fini(&job);
        free(t.data);
    }
}

static void limits(void)
{
    const char **argv = calloc(RDS_MAX_ARGC + 1, sizeof *argv);
    size_t *lens = calloc(RDS_MAX_ARGC + 1, sizeof *lens), i;
    struct rds_job job;

    MT_REQUIRE(argv != NULL && lens != NULL);
    for (i = 0; i <= RDS_MAX_ARGC; i++)
        argv[i] = "";
    rds_job_init(&job, NULL, RT_NEVER);
    MT_EQ(rds_cmd_encode(&job, 0, argv, lens), RT_EINVAL);
    MT_EQ(rds_cmd_encode(&job, RDS_MAX_ARGC + 1, argv, lens), RT_EINVAL);
    lens[1] = RDS_MAX_ARG + 1; /* never read */
    MT_EQ(rds_cmd_encode(&job, 2, argv, lens), RT_EINVAL);
    lens[1] = SIZE_MAX;
    MT_EQ(rds_cmd_encode(&job, 2, argv, lens), RT_EINVAL);
    MT_EQ(job.request_len, 0);
    lens[1] = 0;
    MT_EQ(rds_cmd_encode(&job, RDS_MAX_ARGC, argv, lens), RT_OK);
    MT_EQ(job.request_len, 1 + 7 + 2 + RDS_MAX_ARGC * 6);
    rds_job_fini(&job);
    free(argv);
    free(lens);
}

/* Piece by piece, with a part that is encoded already, is the same bytes. */
static void pieces(void)
{
    static const char *const argv[] = { "HSET", "key", "f", "v" };
    static const size_t lens[] = { 4, 3, 1, 1 };
    static const char raw[] = "$4\r\nHSET\r\n$3\r\nkey\r\n";
    struct text t = { NULL, 0, 0 };
    struct rds_job job;
    struct rds_cmd cmd;

    long_way(&t, 4, argv, lens);
    rds_job_init(&job, NULL, RT_NEVER);
    MT_EQ(rds_cmd_begin(&cmd, &job, 4, sizeof raw - 1 + 2 * rds_cmd_arg_size(1)), RT_OK);
    rds_cmd_raw(&cmd, raw, sizeof raw - 1);
    rds_cmd_arg(&cmd, "f", 1);
    rds_cmd_arg(&cmd, "v", 1);
    rds_cmd_end(&cmd);
    MT_CHECK(same(&job, &t));
    MT_CHECK(cmd.at == job.request + t.len);
    rds_job_fini(&job);
    free(t.data);
}

static void property(uint64_t *rnd)
{
    static char noise[1 << 18];
    unsigned round, total = (unsigned)MT_SCALE(20000);
    const char *argv[40];
    size_t lens[40], i;

    for (i = 0; i < sizeof noise; i++)
        noise[i] = (char)mt_rand(rnd);
    for (round = 0; round < total; round++) {
        size_t argc = 1 + mt_rand(rnd) % 40;
        struct text t = { NULL, 0, 0 };
        struct rds_job job;

        for (i = 0; i < argc; i++) {
            /* Mostly short, and each order of magnitude now and then. */
            size_t cap = (size_t)1 << (mt_rand(rnd) % (round % 50 == 0 ? 18 : 8));

            lens[i] = mt_rand(rnd) % (cap + 1);
            argv[i] = noise + mt_rand(rnd) % (sizeof noise - lens[i] + 1);
        }
        long_way(&t, argc, argv, lens);
        rds_job_init(&job, NULL, RT_NEVER);
        MT_REQUIRE(rds_cmd_encode(&job, argc, argv, lens) == RT_OK);
        if (!same(&job, &t))
            MT_CHECK(!"the two encoders differ");
        rds_job_fini(&job);
        free(t.data);
    }
}

int main(void)
{
    uint64_t rnd = mt_seed();

    known_bytes();
    decimals();
    inline_or_not();
    limits();
    pieces();
    property(&rnd);
    return mt_report("cmd");
}
