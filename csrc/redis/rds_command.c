#include "rds_command.h"

#include <stdlib.h>
#include <string.h>

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
    "CLIENT", "XREAD", "XREADGROUP", "SCRIPT", "TS.READ",
};

/* The others, sorted: for any connection. */
static const char *const shared[] = {
    "ACL", "APPEND", "ARCOUNT", "ARDEL", "ARDELRANGE", "ARGET", "ARGETRANGE", "ARGREP",
    "ARINFO", "ARINSERT", "ARLASTITEMS", "ARLEN", "ARMGET", "ARMSET", "ARNEXT", "AROP",
    "ARRING", "ARSCAN", "ARSEEK", "ARSET", "BF.ADD", "BF.CARD", "BF.EXISTS", "BF.INFO",
    "BF.INSERT", "BF.LOADCHUNK", "BF.MADD", "BF.MEXISTS", "BF.RESERVE", "BF.SCANDUMP",
    "BGREWRITEAOF", "BGSAVE", "BITCOUNT", "BITFIELD", "BITFIELD_RO", "BITOP", "BITPOS",
    "CF.ADD", "CF.ADDNX", "CF.COUNT", "CF.DEL", "CF.EXISTS", "CF.INFO", "CF.INSERT",
    "CF.INSERTNX", "CF.LOADCHUNK", "CF.MEXISTS", "CF.RESERVE", "CF.SCANDUMP", "CLUSTER",
    "CMS.INCRBY", "CMS.INFO", "CMS.INITBYDIM", "CMS.INITBYPROB", "CMS.MERGE", "CMS.QUERY",
    "COMMAND", "CONFIG", "COPY", "DBSIZE", "DEBUG", "DECR", "DECRBY", "DEL", "DELEX", "DIGEST",
    "DUMP", "ECHO", "EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "EXISTS", "EXPIRE", "EXPIREAT",
    "EXPIRETIME", "FCALL", "FCALL_RO", "FLUSHALL", "FLUSHDB", "FT.ADD", "FT.ADDHASH",
    "FT.AGGREGATE", "FT.ALIASADD", "FT.ALIASDEL", "FT.ALIASLIST", "FT.ALIASUPDATE", "FT.ALTER",
    "FT.CONFIG", "FT.CREATE", "FT.CURSOR", "FT.DEL", "FT.DICTADD", "FT.DICTDEL", "FT.DICTDUMP",
    "FT.DROPINDEX", "FT.EXPLAIN", "FT.EXPLAINCLI", "FT.HYBRID", "FT.INFO", "FT.MGET",
    "FT.PROFILE", "FT.SEARCH", "FT.SPELLCHECK", "FT.SUGADD", "FT.SUGDEL", "FT.SUGGET",
    "FT.SUGLEN", "FT.SYNDUMP", "FT.SYNUPDATE", "FT.TAGVALS", "FUNCTION", "GEOADD", "GEODIST",
    "GEOHASH", "GEOPOS", "GEORADIUS", "GEORADIUSBYMEMBER", "GEORADIUSBYMEMBER_RO",
    "GEORADIUS_RO", "GEOSEARCH", "GEOSEARCHSTORE", "GET", "GETBIT", "GETDEL", "GETEX",
    "GETRANGE", "GETSET", "HDEL", "HEXISTS", "HEXPIRE", "HEXPIREAT", "HEXPIRETIME", "HGET",
    "HGETALL", "HGETDEL", "HGETEX", "HINCRBY", "HINCRBYFLOAT", "HKEYS", "HLEN", "HMGET",
    "HMSET", "HOTKEYS", "HPERSIST", "HPEXPIRE", "HPEXPIREAT", "HPEXPIRETIME", "HPTTL",
    "HRANDFIELD", "HSCAN", "HSET", "HSETEX", "HSETNX", "HSTRLEN", "HTTL", "HVALS", "INCR",
    "INCRBY", "INCRBYFLOAT", "INCREX", "INFO", "JSON.ARRAPPEND", "JSON.ARRINDEX",
    "JSON.ARRINSERT", "JSON.ARRLEN", "JSON.ARRPOP", "JSON.ARRTRIM", "JSON.CLEAR", "JSON.DEBUG",
    "JSON.DEL", "JSON.GET", "JSON.MERGE", "JSON.MGET", "JSON.MSET", "JSON.NUMINCRBY",
    "JSON.NUMMULTBY", "JSON.OBJKEYS", "JSON.OBJLEN", "JSON.RESP", "JSON.SET", "JSON.STRAPPEND",
    "JSON.STRLEN", "JSON.TOGGLE", "JSON.TYPE", "KEYS", "LASTSAVE", "LATENCY", "LCS", "LINDEX",
    "LINSERT", "LLEN", "LMOVE", "LMOVEM", "LMPOP", "LOLWUT", "LPOP", "LPOS", "LPUSH", "LPUSHX",
    "LRANGE", "LREM", "LSET", "LTRIM", "MEMORY", "MGET", "MIGRATE", "MODULE", "MOVE", "MSET",
    "MSETEX", "MSETNX", "OBJECT", "PERSIST", "PEXPIRE", "PEXPIREAT", "PEXPIRETIME", "PFADD",
    "PFCOUNT", "PFDEBUG", "PFMERGE", "PFSELFTEST", "PING", "PSETEX", "PTTL", "PUBLISH",
    "PUBSUB", "RANDOMKEY", "RENAME", "RENAMENX", "RESTORE", "RESTORE-ASKING", "ROLE", "RPOP",
    "RPOPLPUSH", "RPUSH", "RPUSHX", "SADD", "SAVE", "SCAN", "SCARD", "SDIFF", "SDIFFCARD",
    "SDIFFSTORE", "SENTINEL", "SET", "SETBIT", "SETEX", "SETNX", "SETRANGE", "SINTER",
    "SINTERCARD", "SINTERSTORE", "SISMEMBER", "SLOWLOG", "SMEMBERS", "SMISMEMBER", "SMOVE",
    "SORT", "SORT_RO", "SPOP", "SPUBLISH", "SRANDMEMBER", "SREM", "SSCAN", "STRALGO", "STRLEN",
    "SUBSTR", "SUNION", "SUNIONCARD", "SUNIONSTORE", "SWAPDB", "TDIGEST.ADD", "TDIGEST.BYRANK",
    "TDIGEST.BYREVRANK", "TDIGEST.CDF", "TDIGEST.CREATE", "TDIGEST.INFO", "TDIGEST.MAX",
    "TDIGEST.MERGE", "TDIGEST.MIN", "TDIGEST.QUANTILE", "TDIGEST.RANK", "TDIGEST.RESET",
    "TDIGEST.REVRANK", "TDIGEST.TRIMMED_MEAN", "TIME", "TOPK.ADD", "TOPK.COUNT", "TOPK.INCRBY",
    "TOPK.INFO", "TOPK.LIST", "TOPK.QUERY", "TOPK.RESERVE", "TOUCH", "TRIMSLOTS", "TS.ADD",
    "TS.ALTER", "TS.CREATE", "TS.CREATERULE", "TS.DECRBY", "TS.DEL", "TS.DELETERULE", "TS.GET",
    "TS.INCRBY", "TS.INFO", "TS.MADD", "TS.MGET", "TS.MRANGE", "TS.MREVRANGE", "TS.NRANGE",
    "TS.NREVRANGE", "TS.QUERYINDEX", "TS.QUERYLABELS", "TS.RANGE", "TS.REVRANGE", "TTL", "TYPE",
    "UNLINK", "VADD", "VCARD", "VDIM", "VEMB", "VGETATTR", "VINFO", "VISMEMBER", "VLINKS",
    "VRANDMEMBER", "VRANGE", "VREM", "VSETATTR", "VSIM", "XACK", "XACKDEL", "XADD",
    "XAUTOCLAIM", "XCFGSET", "XCLAIM", "XDEL", "XDELEX", "XGROUP", "XIDMPRECORD", "XINFO",
    "XLEN", "XNACK", "XPENDING", "XRANGE", "XREVRANGE", "XSETID", "XTRIM", "ZADD", "ZCARD",
    "ZCOUNT", "ZDIFF", "ZDIFFSTORE", "ZINCRBY", "ZINTER", "ZINTERCARD", "ZINTERSTORE",
    "ZLEXCOUNT", "ZMPOP", "ZMSCORE", "ZPOPMAX", "ZPOPMIN", "ZRANDMEMBER", "ZRANGE",
    "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZRANGESTORE", "ZRANK", "ZREM", "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE", "ZREVRANGE", "ZREVRANGEBYLEX", "ZREVRANGEBYSCORE",
    "ZREVRANK", "ZSCAN", "ZSCORE", "ZUNION", "ZUNIONSTORE",
};

static const char *const client_shared[] = {
    "ID", "LIST", "KILL", "PAUSE", "UNPAUSE", "UNBLOCK", "HELP",
};

/* Where word stands to name, which is in upper case: below, at or above 0. */
static int compare(const char *word, size_t len, const char *name)
{
    size_t i;

    for (i = 0; i < len && rds_upper(word[i]) == name[i] && name[i] != '\0'; i++)
        ;
    if (i == len)
        return -(name[i] != '\0');
    return (unsigned char)rds_upper(word[i]) < (unsigned char)name[i] ? -1 : 1;
}

static bool is(const char *word, size_t len, const char *name)
{
    return compare(word, len, name) == 0;
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

struct name {
    const char *word;
    size_t len;
};

static int compare_name(const void *key, const void *entry)
{
    const struct name *name = key;

    return compare(name->word, name->len, *(const char *const *)entry);
}

#define ONE_OF(word, len, names) one_of(word, len, names, sizeof (names) / sizeof *(names))

enum rds_sharing rds_command_sharing(const char *name, size_t len)
{
    struct name key = { name, len };

    if (ONE_OF(name, len, blocking))
        return RDS_BLOCKING;
    if (ONE_OF(name, len, stateful))
        return RDS_STATEFUL;
    if (ONE_OF(name, len, depends))
        return RDS_DEPENDS;
    return bsearch(&key, shared, sizeof shared / sizeof *shared, sizeof *shared, compare_name) != NULL
               ? RDS_SHARED
               : RDS_UNKNOWN;
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
    if (is(argv[0], lens[0], "TS.READ"))
        return argc > 3 && is(argv[3], lens[3], "BLOCK") ? RDS_BLOCKING : RDS_SHARED;
    if (argc < 2)
        return RDS_SHARED; /* the server answers with an error */
    if (is(argv[0], lens[0], "CLIENT"))
        return ONE_OF(argv[1], lens[1], client_shared) ? RDS_SHARED : RDS_STATEFUL;
    /* SCRIPT DEBUG: the debugger takes the connection over. */
    return is(argv[1], lens[1], "DEBUG") ? RDS_STATEFUL : RDS_SHARED;
}
