/* The log: one JSON object per line, written by its own thread. Whoever logs hands over a line and
 * goes on; when the reader of the log is slow, lines are dropped and counted, and the server is
 * not. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_LOG_H
#define SWITCHYARD_DAEMON_LOG_H

#include "base/base.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
enum log_level log_level_parse(const char *name); /* unknown = LOG_INFO */

struct logger;
/* Writes to `fd`, which stays the caller's. */
enum err_code logger_open(int fd, enum log_level level, struct logger **ret,
                          struct err *e) BASE_NODISCARD;
/* Writes what is queued, for at most a second if nobody reads, and joins the thread. */
void logger_close(struct logger **l);

/* {"ts":...,"level":...,"event":...,"message":...}. Any thread; NULL logger = nothing. */
void logger_event(struct logger *l, enum log_level level, const char *event, const char *fmt, ...)
    BASE_PRINTF(4, 5);
/* Begin a line of one's own: `{"ts":...,"level":"info","event":"request"`; the caller appends
 * fields (each with its comma), then logger_send closes the object and takes the memory over. */
void logger_begin(struct buf *line, enum log_level level, const char *event);
void logger_send(struct logger *l, struct buf *line);
uint64_t logger_dropped(const struct logger *l);

#endif
