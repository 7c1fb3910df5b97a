/* offloop._core.Messages: what PubSub.listen() gives, an asynchronous iterator.
 *
 * For: subscribers by the thousand, for each of whom an asynchronous generator costs as
 * much as the rest of a message: its frame, the objects that stand for one step, and a
 * StopIteration for each.  Here a step is one small object that a task sends to.
 *
 *     async for message in messages     Messages.__anext__() -> _NextMessage
 *         message there                 its send() returns it: no turn of the loop
 *         none yet                      it passes the lease's future on to the task
 *         not a plain message           PubSub._receive(), a coroutine, which it drives
 *
 * As with a generator: an error ends it, one task at a time, StopAsyncIteration when there
 * are no subscriptions any more.  Cancelled, it takes no message away: until the very step
 * that returns it, a message is the lease's. */
#ifndef OFFLOOP_LISTEN_H
#define OFFLOOP_LISTEN_H

#include "core.h"

extern PyType_Spec core_messages_spec;
extern PyType_Spec core_next_message_spec;

#endif
