/* Which commands may share a connection.
 *
 * A shared connection carries commands that send one command, get one reply at
 * once and leave no trace in the connection.  What waits on the server (BLPOP),
 * answers more than once (SUBSCRIBE, MONITOR), or changes or shows the state of
 * the connection (SELECT, WATCH, CLIENT SETNAME) needs one of its own.
 *
 * Source: the command tables of Redis and Valkey (flags blocking, pubsub, and
 * the descriptions of CLIENT's subcommands). */
#ifndef RDS_COMMAND_H
#define RDS_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

enum rds_sharing {
    RDS_SHARED = 0, /* whatever its arguments */
    RDS_LEASED,     /* whatever its arguments */
    RDS_DEPENDS,    /* on its arguments: ask rds_command_shared() */
};

/* By name alone (any case); `second` is the next word, if known. */
enum rds_sharing rds_command_sharing(const char *name, size_t len);

/* Whether the command, of which the words are given, may share a connection.
 * Only the first few words matter, and for XREAD those before STREAMS. */
bool rds_command_shared(size_t argc, const char *const *argv, const size_t *lens);

#endif
