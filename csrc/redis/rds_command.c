#include "rds_command.h"

#include <string.h>
#include <strings.h>

/* They wait on the server. */
static const char *const blocking[] = {
    "BLPOP", "BRPOP", "BLMOVE", "BLMOVEM", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP",
};

static const char *const stateful[] = {
    /* wait for what was written on their own connection */
    "WAIT", "WAITAOF",
    /* answer more than once, or turn the connection into something else */
    "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE",
    "MONITOR", "SYNC", "PSYNC", "REPLCONF", "SLAVEOF", "REPLICAOF", "FAILOVER", "SHUTDOWN",
    /* belong to the connection */
    "MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH", "SELECT", "AUTH", "HELLO", "RESET", "QUIT",
    "ASKING", "READONLY", "READWRITE", "HIMPORT",
};

/* Commands of which only some forms need a connection of their own. */
static const char *const depends[] = {
    "CLIENT", "XREAD", "XREADGROUP", "SCRIPT",
};

static const char *const client_shared[] = {
    "ID", "INFO", "LIST", "KILL", "PAUSE", "UNPAUSE", "UNBLOCK", "HELP",
};

static bool is(const char *word, size_t len, const char *name)
{
    return strlen(name) == len && strncasecmp(word, name, len) == 0;
}

static bool one_of(const char *word, size_t len, const char *const *names, size_t count)
{
    size_t i;

    for (i = 0; i < count; i++) {
        if (is(word, len, names[i]))
            return true;
    }
    return false;
}

#define ONE_OF(word, len, names) one_of(word, len, names, sizeof (names) / sizeof *(names))

enum rds_sharing rds_command_sharing(const char *name, size_t len)
{
    if (ONE_OF(name, len, blocking))
        return RDS_BLOCKING;
    if (ONE_OF(name, len, stateful))
        return RDS_STATEFUL;
    return ONE_OF(name, len, depends) ? RDS_DEPENDS : RDS_SHARED;
}

/* XREAD [COUNT n] [BLOCK ms] STREAMS ..., XREADGROUP GROUP g c [...] likewise. */
static bool has_block(size_t argc, const char *const *argv, const size_t *lens)
{
    size_t i;

    for (i = 1; i < argc && !is(argv[i], lens[i], "STREAMS"); i++) {
        if (is(argv[i], lens[i], "BLOCK"))
            return true;
        if (is(argv[i], lens[i], "GROUP"))
            i += 2; /* names, which may be anything */
        else if (is(argv[i], lens[i], "COUNT"))
            i += 1;
    }
    return false;
}

enum rds_sharing rds_command_decide(size_t argc, const char *const *argv, const size_t *lens)
{
    enum rds_sharing sharing;

    if (argc == 0)
        return RDS_SHARED;
    sharing = rds_command_sharing(argv[0], lens[0]);
    if (sharing != RDS_DEPENDS)
        return sharing;
    if (is(argv[0], lens[0], "XREAD") || is(argv[0], lens[0], "XREADGROUP"))
        return has_block(argc, argv, lens) ? RDS_BLOCKING : RDS_SHARED;
    if (argc < 2)
        return RDS_SHARED; /* the server answers with an error */
    if (is(argv[0], lens[0], "CLIENT"))
        return ONE_OF(argv[1], lens[1], client_shared) ? RDS_SHARED : RDS_STATEFUL;
    /* SCRIPT DEBUG: the debugger takes the connection over. */
    return is(argv[1], lens[1], "DEBUG") ? RDS_STATEFUL : RDS_SHARED;
}
