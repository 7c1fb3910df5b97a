/* Which commands may share a connection.
 *
 * A shared connection carries commands that send one command, get one reply at
 * once and leave no trace in the connection.  What waits on the server (BLPOP),
 * answers more than once (SUBSCRIBE, MONITOR), or changes or shows the state of
 * the connection (SELECT, WATCH, CLIENT SETNAME) needs one of its own: for as long as
 * it waits where that is all there is to it, for as long as its caller needs the
 * state otherwise.
 *
 * Source: the command tables of Redis 7.0 to 8.6 and Valkey 7.2 (flags blocking, pubsub,
 * and the descriptions of CLIENT's subcommands), and the commands of the modules that
 * redis-py has methods for.  What a name in none of them needs, the server knows:
 * COMMAND INFO. */
#ifndef RDS_COMMAND_H
#define RDS_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

/* As the server does it: the process's locale must not decide what a command is. */
static inline char rds_upper(char c)
{
    return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
}

enum rds_sharing {
    RDS_SHARED = 0, /* any connection */
    RDS_BLOCKING,   /* waits on the server and leaves no trace: a lease for its time */
    RDS_STATEFUL,   /* belongs to a connection: one that its caller keeps */
    RDS_DEPENDS,    /* on its arguments: ask rds_command_decide() */
    RDS_UNKNOWN,    /* in no table here: a module's, or a newer server's */
};

/* By name alone, in any case. */
enum rds_sharing rds_command_sharing(const char *name, size_t len);

/* The same for a command of which the words are given; never RDS_DEPENDS.  Only the
 * first few words matter, and for XREAD those before STREAMS. */
enum rds_sharing rds_command_decide(size_t argc, const char *const *argv, const size_t *lens);

#endif
