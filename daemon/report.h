/* What a person is told at start and by `switchyard check`: memory budgets, experts, router.
 * Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_REPORT_H
#define SWITCHYARD_DAEMON_REPORT_H

#include "daemon/server.h"

/* The running server: budgets as they are, experts with their sizes. */
void report_server(struct server *s, struct buf *out);
/* A configuration that is not running; looks into the store if there is one. `json`: one object. */
void report_conf(const struct conf *c, bool json, struct buf *out);

#endif
