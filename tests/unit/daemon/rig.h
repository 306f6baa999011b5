/* The HTTP side over the fake rooms, on an ephemeral port, and a client of raw sockets. */
#ifndef SWITCHYARD_TESTS_UNIT_DAEMON_RIG_H
#define SWITCHYARD_TESTS_UNIT_DAEMON_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "daemon/http.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/server.h"
#include "tests/unit/daemon/fake.h"

struct rig {
    struct conf conf;
    struct server server;
    int port;
    int log_fd; /* a file the log goes to, unlinked */
};
/* Everything but HTTP: for tests of api_*.c alone. */
void rig_open_api(struct rig *r, size_t experts);
void rig_open(struct rig *r);  /* four experts, no keys */
void rig_start(struct rig *r); /* after the test changed r->conf */
void rig_close(struct rig *r);
/* The log so far (call after rig_stop_log, or expect a delay). */
void rig_read_log(struct rig *r, struct buf *out);

struct reply {
    int status;      /* 0 = the connection ended before a whole status line */
    char *head;      /* header lines, NUL-terminated */
    struct buf body; /* chunks joined */
    bool whole;      /* ended as its length or last chunk says */
};
void reply_done(struct reply *p);
/* Value of a header in `to`, or "". */
const char *reply_header(const struct reply *p, const char *name, char *to, size_t cap);
json_t *reply_json(const struct reply *p);

int rig_connect(const struct rig *r);
void rig_send(int fd, const char *text, size_t len);
void rig_receive(int fd, struct reply *ret);
/* One request on a connection of its own. `headers` are whole lines with CRLF or "". */
void rig_ask(const struct rig *r, const char *method, const char *path, const char *headers,
             const char *body, struct reply *ret);
/* Write a request on an open connection and leave. */
void rig_post(int fd, const char *path, const char *headers, const char *body);
/* Until cond is true, at most five seconds. */
#define rig_wait(cond)                                                                             \
    do {                                                                                           \
        for (int rig_i = 0; rig_i < 5000 && !(cond); rig_i++)                                      \
            rig_sleep_ms(1);                                                                       \
        assert_true(cond);                                                                         \
    } while (0)
void rig_sleep_ms(unsigned ms);

#endif
