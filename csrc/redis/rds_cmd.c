#include "rds_cmd.h"

size_t rds_put_decimal(char *out, uint64_t value)
{
    char digits[20];
    size_t n = 0, i;

    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    for (i = 0; i < n; i++)
        out[i] = digits[n - 1 - i];
    return n;
}

void rds_cmd_begin_at(struct rds_cmd *cmd, char *at, size_t argc, size_t size)
{
    cmd->job = NULL;
    cmd->limit = at + rds_cmd_need(argc, size);
    *at++ = '*';
    at += rds_put_decimal(at, argc);
    *at++ = '\r';
    *at++ = '\n';
    cmd->at = at;
}

int rds_cmd_begin(struct rds_cmd *cmd, struct rds_job *job, size_t argc, size_t size)
{
    size_t need = rds_cmd_need(argc, size);
    char *at = job->inline_bytes;

    if (need > RDS_INLINE) {
        at = malloc(need);
        if (at == NULL)
            return RT_ENOMEM;
    }
    job->request = at;
    rds_cmd_begin_at(cmd, at, argc, size);
    cmd->job = job;
    return RT_OK;
}

void rds_cmd_arg(struct rds_cmd *cmd, const char *arg, size_t len)
{
    RT_ASSERT((size_t)(cmd->limit - cmd->at) >= rds_cmd_arg_size(len));
    *cmd->at++ = '$';
    cmd->at += rds_put_decimal(cmd->at, len);
    *cmd->at++ = '\r';
    *cmd->at++ = '\n';
    if (len > 0)
        memcpy(cmd->at, arg, len);
    cmd->at += len;
    *cmd->at++ = '\r';
    *cmd->at++ = '\n';
}

void rds_cmd_raw(struct rds_cmd *cmd, const char *wire, size_t len)
{
    RT_ASSERT((size_t)(cmd->limit - cmd->at) >= len);
    memcpy(cmd->at, wire, len);
    cmd->at += len;
}

void rds_cmd_end(struct rds_cmd *cmd)
{
    RT_CHECK(cmd->at <= cmd->limit);
    cmd->job->request_len = (size_t)(cmd->at - cmd->job->request);
}

int rds_cmd_encode(struct rds_job *job, size_t argc, const char *const *argv, const size_t *lens)
{
    struct rds_cmd cmd;
    size_t i, size = 0;
    int err;

    if (argc < 1 || argc > RDS_MAX_ARGC)
        return RT_EINVAL;
    for (i = 0; i < argc; i++) {
        if (lens[i] > RDS_MAX_ARG)
            return RT_EINVAL;
        size += rds_cmd_arg_size(lens[i]);
    }
    err = rds_cmd_begin(&cmd, job, argc, size);
    if (err)
        return err;
    for (i = 0; i < argc; i++)
        rds_cmd_arg(&cmd, argv[i], lens[i]);
    rds_cmd_end(&cmd);
    return RT_OK;
}
