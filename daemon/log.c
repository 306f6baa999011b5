/* The log thread and its bounded ring of lines. */
#include "daemon/log.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/json_out.h"

#define LOG_LINES 4096
#define LOG_PIECE 4096 /* PIPE_BUF: a pipe that polls writable takes this much without blocking */

struct logger {
    int fd;
    enum log_level level;
    struct ring *ring; /* of char *, malloc'd; a line's newline is inside */
    pthread_t thread;
    atomic_bool stop;
    _Atomic uint64_t dropped;
    uint64_t dropped_told; /* log thread's, as the next */
    bool unread; /* closing, and nobody took a line within a second: the rest is dropped */
};

static const char *const level_names[] = {"error", "warn", "info", "debug"};

enum log_level log_level_parse(const char *name)
{
    for (size_t i = 0; i < BASE_COUNT(level_names); i++)
        if (strcmp(name, level_names[i]) == 0)
            return (enum log_level)i;
    return LOG_INFO;
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* False = nobody reads and the log is to be closed. */
static bool wait_writable(struct logger *l)
{
    struct pollfd p = {.fd = l->fd, .events = POLLOUT};
    while (!l->unread) {
        bool stopping = atomic_load(&l->stop);
        if (poll(&p, 1, 1000) > 0)
            return (p.revents & POLLNVAL) == 0;
        l->unread = stopping;
    }
    return false;
}

static void write_line(struct logger *l, const char *line, size_t len)
{
    while (len > 0 && wait_writable(l)) {
        ssize_t n = write(l->fd, line, BASE_MIN(len, LOG_PIECE));
        if (n <= 0)
            return; /* the reader is gone; there is nowhere left to say so */
        line += n;
        len -= (size_t)n;
    }
}

static void tell_dropped(struct logger *l)
{
    uint64_t dropped = atomic_load(&l->dropped);
    if (dropped == l->dropped_told)
        return;
    struct buf line = {0};
    logger_begin(&line, LOG_WARN, "log_dropped");
    buf_printf(&line, ",\"lines\":%llu}\n", (unsigned long long)(dropped - l->dropped_told));
    write_line(l, line.data, line.len);
    buf_done(&line);
    l->dropped_told = dropped;
}

static void *log_main(void *arg)
{
    struct logger *l = arg;
    struct pollfd p = {.fd = ring_fd(l->ring), .events = POLLIN};
    for (;;) {
        bool stopping = atomic_load(&l->stop);
        char *line;
        ring_drain_fd(l->ring);
        while ((line = ring_pop(l->ring)) != NULL) {
            write_line(l, line, strlen(line));
            free(line);
        }
        tell_dropped(l);
        if (stopping)
            return NULL;
        poll(&p, 1, 1000);
    }
}

enum err_code logger_open(int fd, enum log_level level, struct logger **ret, struct err *e)
{
    struct logger *l = mem_alloc(sizeof *l);
    l->fd = fd;
    l->level = level;
    enum err_code code = ring_open(&l->ring, LOG_LINES, e);
    if (code == ERR_OK)
        code = thread_start(&l->thread, "log", log_main, l, e);
    if (code != ERR_OK) {
        ring_close(&l->ring);
        free(l);
        return code;
    }
    *ret = l;
    return ERR_OK;
}

void logger_close(struct logger **lp)
{
    struct logger *l = *lp;
    char *line;
    *lp = NULL;
    if (l == NULL)
        return;
    atomic_store(&l->stop, true);
    ring_wake(l->ring);
    thread_join(l->thread);
    while ((line = ring_pop(l->ring)) != NULL)
        free(line);
    ring_close(&l->ring);
    free(l);
}

/* ---- lines ----------------------------------------------------------------------------------- */

void logger_begin(struct buf *line, enum log_level level, const char *event)
{
    uint64_t ms = clock_wall_ms();
    time_t seconds = (time_t)(ms / 1000);
    struct tm utc;
    char stamp[32];
    gmtime_r(&seconds, &utc);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    buf_printf(line, "{\"ts\":\"%s.%03uZ\",\"level\":\"%s\",\"event\":\"%s\"", stamp,
               (unsigned)(ms % 1000), level_names[level], event);
}

void logger_send(struct logger *l, struct buf *line)
{
    buf_puts(line, "}\n");
    /* The ring carries NUL-terminated text; JSON escapes every NUL. */
    if (l != NULL && ring_push(l->ring, line->data)) {
        *line = (struct buf){0};
        return;
    }
    if (l != NULL)
        atomic_fetch_add(&l->dropped, 1);
    buf_done(line);
}

void logger_event(struct logger *l, enum log_level level, const char *event, const char *fmt, ...)
{
    struct buf line = {0};
    char *message;
    va_list ap;
    if (l == NULL || level > l->level)
        return;
    va_start(ap, fmt);
    int n = vasprintf(&message, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    logger_begin(&line, level, event);
    buf_puts(&line, ",\"message\":");
    json_put_text(&line, message, (size_t)n);
    free(message);
    logger_send(l, &line);
}

uint64_t logger_dropped(const struct logger *l)
{
    return atomic_load(&l->dropped);
}
