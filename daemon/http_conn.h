/* Open connections, and an end to those whose request never becomes whole. libmicrohttpd's time
 * limit is about silence only: a client that sends a byte now and then, or that hangs up half-way
 * in a state the library waits in, would keep its place for ever. Private to daemon/http*.c. */
#ifndef SWITCHYARD_DAEMON_HTTP_CONN_H
#define SWITCHYARD_DAEMON_HTTP_CONN_H

#include <microhttpd.h>

#include "base/base.h"

struct conns;
/* A request must be wholly received within `limit_ns` of the connection's opening or of the answer
 * before it. */
struct conns *conns_open(size_t capacity, uint64_t limit_ns);
void conns_close(struct conns **c);
/* For MHD_OPTION_NOTIFY_CONNECTION; cls is the table. HTTP threads. */
void conns_notify(void *cls, struct MHD_Connection *connection, void **socket_context,
                  enum MHD_ConnectionNotificationCode code);
/* The request is in / the answer is out. HTTP threads. */
void conns_received(struct MHD_Connection *connection);
void conns_answered(struct MHD_Connection *connection);
/* Shut down those that are overdue. Any one thread, about once a second. */
void conns_tick(struct conns *c, uint64_t now_ns);

#endif
