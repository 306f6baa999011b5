/* Counters of the HTTP side, and the Prometheus page of everything. A scrape reads counters; it
 * never wakes an expert. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_METRICS_H
#define SWITCHYARD_DAEMON_METRICS_H

#include "daemon/api.h"

struct metrics;
struct metrics *metrics_open(size_t experts_count);
void metrics_close(struct metrics **m);

/* One request ended with this HTTP status; `call` may be NULL (it never became one). Any thread. */
void metrics_note_request(struct metrics *m, const struct api_call *call, int status);
/* Text exposition format 0.0.4. */
void metrics_put(struct server *s, struct buf *out);

#endif
