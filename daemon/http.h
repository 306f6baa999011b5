/* The HTTP side: listening sockets, libmicrohttpd's threads, routes. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_HTTP_H
#define SWITCHYARD_DAEMON_HTTP_H

#include "daemon/server.h"

struct http;

/* Binds and starts to answer. Refused with the cause: port in use, no such address, a bind that
 * others can reach without an API key. */
enum err_code http_open(struct server *s, struct http **ret, struct err *e) BASE_NODISCARD;
/* "http://127.0.0.1:8080" with the real port. */
const char *http_address(const struct http *h);
/* Let what runs finish until `deadline_ns` (clock_ns), then cancel the rest, then end every
 * connection and join the threads. The caller has set server.draining. Blocks. */
void http_stop(struct http *h, uint64_t deadline_ns);
/* After http_stop, and after the engine has closed. */
void http_close(struct http **h);

#endif
