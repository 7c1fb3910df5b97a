/* Which commands may share a connection, and which never may. */
#include <ctype.h>

#include "minitest.h"
#include "rds_command.h"

#define WORDS 8

/* Split a line into words, as a caller's argv. */
static size_t split(char *line, const char **argv, size_t *lens)
{
    size_t argc = 0;
    char *word, *save = NULL;

    for (word = strtok_r(line, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save)) {
        MT_REQUIRE(argc < WORDS + 4);
        argv[argc] = word;
        lens[argc++] = strlen(word);
    }
    return argc;
}

static enum rds_sharing decide(const char *text, bool lower)
{
    const char *argv[WORDS + 4];
    size_t lens[WORDS + 4], i;
    char line[200];

    snprintf(line, sizeof line, "%s", text);
    for (i = 0; lower && line[i] != '\0'; i++)
        line[i] = (char)tolower((unsigned char)line[i]);
    i = split(line, argv, lens);
    return rds_command_decide(i, argv, lens);
}

static const char *const may_share[] = {
    "GET k", "SET k v", "MGET a b c", "EVAL x 0", "FCALL f 0", "PUBLISH c m", "KEYS *", "PING",
    "INFO", "DBSIZE", "FLUSHALL", "LPOP l", "RPOPLPUSH a b", "LMOVE a b LEFT RIGHT", "ZPOPMIN z",
    "LMPOP 1 l LEFT", "SCAN 0", "OBJECT ENCODING k", "CONFIG GET *", "ACL WHOAMI", "TIME", "ECHO x",
    /* of commands that depend on their arguments */
    "CLIENT ID", "CLIENT LIST", "CLIENT KILL ID 3", "CLIENT PAUSE 1", "CLIENT UNPAUSE", "CLIENT UNBLOCK 3",
    "CLIENT", "XREAD COUNT 2 STREAMS s 0", "XREAD STREAMS s 0", "XREAD",
    "XREADGROUP GROUP g c STREAMS s >", "XREADGROUP GROUP g c COUNT 1 NOACK STREAMS s >",
    "SCRIPT LOAD x", "SCRIPT EXISTS x", "CLUSTER SLOTS", "DEBUG SLEEP 0",
    /* names that look like options */
    "XREADGROUP GROUP BLOCK c STREAMS s >", "XREADGROUP GROUP g BLOCK STREAMS s >",
    "XREADGROUP GROUP STREAMS BLOCK STREAMS s >", "XREAD STREAMS BLOCK 0", "XREAD COUNT BLOCK STREAMS s 0",
    /* of modules */
    "FT.SEARCH i q", "JSON.GET k", "TS.READ k 0", "TS.READ k 0 COUNT 3", "TS.READ BLOCK 0",
    "BF.ADD k i", "VADD s VALUES 1 1 e", "GETEX k",
    /* the first and the last in the table */
    "ACL LIST", "ZUNIONSTORE k 1 a",
};

static const char *const in_no_table[] = {
    /* names that begin like others */
    "SELECTED", "MULTIX", "BLPOPS", "AUTHX", "WAITX", "BLPO", "GE", "GETT", "A", "ZZZ",
    "JSON.", "MYMODULE.WAIT 3", "0", "_", "{",
};

static const char *const wait_for_the_server[] = {
    "BLPOP l 0", "BRPOP l 0", "BLMOVE a b LEFT RIGHT 0", "BRPOPLPUSH a b 0", "BLMPOP 0 1 l LEFT",
    "BZPOPMIN z 0", "BZPOPMAX z 0", "BZMPOP 0 1 z MIN", "BLMOVEM a b LEFT RIGHT 0", "BLPOP",
    "TS.READ k 0 BLOCK 0 1", "XREAD BLOCK 0 STREAMS s 0", "XREAD COUNT 1 BLOCK 0 STREAMS s 0",
    "XREADGROUP GROUP g c BLOCK 0 STREAMS s >", "XREADGROUP GROUP g c NOACK BLOCK 0 STREAMS s >",
};

static const char *const keep_a_connection[] = {
    "WAIT 1 0", "WAITAOF 1 1 0",
    "SUBSCRIBE c", "PSUBSCRIBE c", "SSUBSCRIBE c", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE",
    "MONITOR", "SYNC", "PSYNC ? -1", "REPLCONF x", "REPLICAOF a 1", "SLAVEOF a 1", "SHUTDOWN",
    "MULTI", "EXEC", "DISCARD", "WATCH k", "UNWATCH", "SELECT 1", "AUTH p", "HELLO 3", "RESET",
    "QUIT", "ASKING", "READONLY", "READWRITE",
    "CLIENT SETNAME x", "CLIENT GETNAME", "CLIENT REPLY OFF",
    "CLIENT TRACKING ON", "CLIENT CACHING YES", "CLIENT TRACKINGINFO", "CLIENT GETREDIR",
    "CLIENT NO-EVICT ON", "CLIENT NO-TOUCH ON", "CLIENT SETINFO LIB-NAME x", "CLIENT INFO", "CLIENT WHATEVER",
    "SCRIPT DEBUG YES",
};

static void by_name(void)
{
    MT_EQ(rds_command_sharing("get", 3), RDS_SHARED);
    MT_EQ(rds_command_sharing("blpop", 5), RDS_BLOCKING);
    MT_EQ(rds_command_sharing("Client", 6), RDS_DEPENDS);
    MT_EQ(rds_command_sharing("", 0), RDS_UNKNOWN);
    MT_EQ(rds_command_sharing("\0\0\0", 3), RDS_UNKNOWN);
    MT_EQ(rds_command_sharing("\xc7\xc5T", 3), RDS_UNKNOWN);
    /* The length counts, not what comes after it. */
    MT_EQ(rds_command_sharing("SELECTED", 6), RDS_STATEFUL);
    MT_EQ(rds_command_sharing("SELECT", 5), RDS_UNKNOWN);
    MT_EQ(rds_command_sharing("MULTI\0", 6), RDS_UNKNOWN);
    MT_EQ(rds_command_sharing("GET\0", 4), RDS_UNKNOWN);
}

static void all(const char *const *commands, size_t count, enum rds_sharing wanted)
{
    size_t i;
    int lower;

    for (lower = 0; lower < 2; lower++) {
        for (i = 0; i < count; i++) {
            if (!MT_EQ(decide(commands[i], lower), wanted))
                fprintf(stderr, "    %s\n", commands[i]);
        }
    }
}

#define ALL(commands, wanted) all(commands, sizeof (commands) / sizeof *(commands), wanted)

int main(void)
{
    mt_seed();
    by_name();
    MT_EQ(rds_command_decide(0, NULL, NULL), RDS_SHARED);
    ALL(may_share, RDS_SHARED);
    ALL(wait_for_the_server, RDS_BLOCKING);
    ALL(keep_a_connection, RDS_STATEFUL);
    ALL(in_no_table, RDS_UNKNOWN);
    return mt_report("command");
}
