/* argv to RESP: an array of bulk strings.
 *
 *     struct rds_cmd cmd;
 *     rds_cmd_begin(&cmd, job, argc, sum of rds_cmd_arg_size() of the arguments);
 *     rds_cmd_arg(&cmd, "GET", 3);
 *     rds_cmd_arg(&cmd, key, keylen);
 *     rds_cmd_end(&cmd);
 *
 * Source: the Redis serialization protocol specification, "Sending commands to
 * a Redis server".  The size is known beforehand, so there is one allocation at
 * most, and none for a short command. */
#ifndef RDS_CMD_H
#define RDS_CMD_H

#include "rds_job.h"

/* The longest argument a server takes by default (proto-max-bulk-len). */
#define RDS_MAX_ARG ((size_t)512 << 20)
#define RDS_MAX_ARGC ((size_t)1 << 20)

struct rds_cmd {
    struct rds_job *job;
    char *at;
    char *limit;
};

static inline size_t rds_decimal_size(uint64_t value)
{
    size_t digits = 1;

    while (value >= 10) {
        value /= 10;
        digits++;
    }
    return digits;
}

/* Bytes that an argument of len bytes takes on the wire. */
static inline size_t rds_cmd_arg_size(size_t len)
{
    return 1 + rds_decimal_size(len) + 2 + len + 2;
}

/* 0 or RT_ENOMEM.  Thread: owner.  Blocks: no. */
int rds_cmd_begin(struct rds_cmd *cmd, struct rds_job *job, size_t argc, size_t size);

/* The same into memory of the caller's, of rds_cmd_need() bytes; no rds_cmd_end(). */
void rds_cmd_begin_at(struct rds_cmd *cmd, char *at, size_t argc, size_t size);

/* Bytes of the whole command on the wire. */
static inline size_t rds_cmd_need(size_t argc, size_t size)
{
    return 1 + rds_decimal_size(argc) + 2 + size;
}

/* Append an argument that rds_cmd_begin() was told of. */
void rds_cmd_arg(struct rds_cmd *cmd, const char *arg, size_t len);

/* Append arguments that are encoded already. */
void rds_cmd_raw(struct rds_cmd *cmd, const char *wire, size_t len);

void rds_cmd_end(struct rds_cmd *cmd);

/* The whole of it in one call.  0, RT_EINVAL or RT_ENOMEM. */
int rds_cmd_encode(struct rds_job *job, size_t argc, const char *const *argv, const size_t *lens);

/* Decimal digits of value at out (20 bytes at most); their number. */
size_t rds_put_decimal(char *out, uint64_t value);

#endif
