/* Pub/sub's short cut: a published message in one call.
 *
 * For: offloop.redis.PubSub, where a message costs more in redis-py's layers than on the
 * way there.  _next_message(pubsub) gives the next one as the dict that redis-py makes of
 * it, or what to wait for until there is one.
 *
 * Correct: nothing of redis-py's is left out that anybody could see.  Before each message
 * it is looked whether somebody has put something of his own in the place of what is
 * left out: a method of PubSub (in a subclass, on the class or on the object), the
 * connection's read_response or parser, a push handler, health checks, the log of pushes,
 * metrics.  Then, and for every reply that is no published message, redis-py's own code
 * does it. */
#ifndef OFFLOOP_MESSAGES_H
#define OFFLOOP_MESSAGES_H

#include "core.h"

extern PyMethodDef core_messages_functions[];

#endif
