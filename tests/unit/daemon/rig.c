/* The rig: conf, fakes, metrics, log, HTTP; and a client that shows every byte. */
#include "tests/unit/daemon/rig.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "daemon/api_guard.h"

void rig_sleep_ms(unsigned ms)
{
    const struct timespec nap = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&nap, NULL);
}

/* ---- server.h's lookups, over the fakes ---- */

struct expert *server_find_expert(struct server *s, const char *name)
{
    return experts_find(s->experts, name);
}

const struct server_expert *server_expert_of(const struct server *s, const struct expert *ex)
{
    return &s->serving[expert_index(ex)];
}

static void open_serving(struct server *s)
{
    size_t count = experts_count(s->experts);
    s->serving = mem_array(count, sizeof *s->serving);
    s->guards = mem_array(count, sizeof *s->guards);
    for (size_t i = 0; i < count; i++) {
        struct expert *ex = experts_at(s->experts, i);
        s->guards[i].guard = guard_open(expert_tokenizer(ex));
        s->serving[i] = (struct server_expert){.system = "",
                                               .template = expert_template(ex),
                                               .guard = s->guards[i].guard,
                                               .context = expert_context(ex)};
        tool_format_probe(s->serving[i].template, expert_tokenizer(ex), &s->serving[i].tools);
    }
    s->guards_count = count;
}

void rig_open_api(struct rig *r, size_t experts)
{
    signal(SIGPIPE, SIG_IGN);
    *r = (struct rig){.log_fd = -1};
    conf_init(&r->conf);
    r->conf.server_port = 0;
    r->server.conf = &r->conf;
    r->server.started_ns = clock_ns();
    r->server.experts = fake_experts_open(experts);
    r->server.generalist = experts_at(r->server.experts, 0);
    r->server.engine = fake_engine_open(r->server.experts);
    r->server.metrics = metrics_open(experts);
    open_serving(&r->server);
}

void rig_start(struct rig *r)
{
    char path[] = "/tmp/switchyard-test-XXXXXX";
    struct err e = {0};
    r->log_fd = mkstemp(path);
    assert_true(r->log_fd >= 0);
    unlink(path);
    if (logger_open(r->log_fd, LOG_DEBUG, &r->server.log, &e) != ERR_OK ||
        http_open(&r->server, &r->server.http, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    const char *colon = strrchr(http_address(r->server.http), ':');
    r->port = atoi(colon + 1);
    atomic_store(&r->server.ready, true);
}

void rig_open(struct rig *r)
{
    rig_open_api(r, 4);
    rig_start(r);
}

void rig_close(struct rig *r)
{
    struct server *s = &r->server;
    http_stop(s->http, 0);
    engine_close(&s->engine);
    http_close(&s->http);
    logger_close(&s->log);
    metrics_close(&s->metrics);
    for (size_t i = 0; i < s->guards_count; i++)
        guard_close(&s->guards[i].guard);
    free(s->guards);
    free(s->serving);
    experts_close(&s->experts);
    conf_done(&r->conf);
    if (r->log_fd >= 0)
        close(r->log_fd);
}

void rig_read_log(struct rig *r, struct buf *out)
{
    char piece[4096];
    ssize_t n;
    off_t at = 0;
    buf_clear(out);
    buf_puts(out, "");
    while ((n = pread(r->log_fd, piece, sizeof piece, at)) > 0) {
        buf_append(out, piece, (size_t)n);
        at += n;
    }
}

/* ---- client ---- */

int rig_connect(const struct rig *r)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)r->port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 20};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

void rig_send(int fd, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the server closed; what it said is still to be read */
        text += n;
        len -= (size_t)n;
    }
}

/* Takes bytes off the socket until `b` holds `need` of them. */
static bool fill(int fd, struct buf *b, size_t need)
{
    char piece[16384];
    while (b->len < need) {
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (n <= 0)
            return false;
        buf_append(b, piece, (size_t)n);
    }
    return true;
}

static bool read_chunks(int fd, struct buf *raw, size_t at, struct buf *body)
{
    for (;;) {
        char *end;
        while ((end = memmem(raw->data + at, raw->len - at, "\r\n", 2)) == NULL)
            if (!fill(fd, raw, raw->len + 1))
                return false;
        size_t size = strtoul(raw->data + at, NULL, 16);
        at = (size_t)(end - raw->data) + 2;
        if (!fill(fd, raw, at + size + 2))
            return false;
        buf_append(body, raw->data + at, size);
        at += size + 2;
        if (size == 0)
            return true;
    }
}

void rig_receive(int fd, struct reply *ret)
{
    struct buf raw = {0};
    char *end, text[32];
    *ret = (struct reply){0};
    buf_puts(&ret->body, "");
    buf_puts(&raw, "");
    while ((end = strstr(raw.data, "\r\n\r\n")) == NULL && fill(fd, &raw, raw.len + 1))
        ;
    if (end == NULL) {
        buf_done(&raw);
        return;
    }
    size_t head = (size_t)(end - raw.data) + 4;
    ret->head = mem_strndup(raw.data, head);
    sscanf(raw.data, "HTTP/1.%*d %d", &ret->status);
    if (strcasecmp(reply_header(ret, "Transfer-Encoding", text, sizeof text), "chunked") == 0) {
        ret->whole = read_chunks(fd, &raw, head, &ret->body);
    } else {
        size_t len = strtoul(reply_header(ret, "Content-Length", text, sizeof text), NULL, 10);
        ret->whole = fill(fd, &raw, head + len);
        buf_append(&ret->body, raw.data + head, BASE_MIN(len, raw.len - head));
    }
    buf_done(&raw);
}

void reply_done(struct reply *p)
{
    free(p->head);
    buf_done(&p->body);
}

const char *reply_header(const struct reply *p, const char *name, char *to, size_t cap)
{
    size_t len = strlen(name);
    to[0] = 0;
    for (const char *line = p->head; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncasecmp(line, name, len) == 0 && line[len] == ':')
            snprintf(to, cap, "%.*s", (int)strcspn(line + len + 2, "\r\n"), line + len + 2);
    }
    return to;
}

json_t *reply_json(const struct reply *p)
{
    json_error_t e;
    json_t *v = json_loadb(p->body.data, p->body.len, JSON_ALLOW_NUL, &e);
    if (v == NULL)
        fail_msg("status %d, not JSON: %s", p->status, p->body.data);
    return v;
}

static void put_request(struct buf *b, const char *method, const char *path, const char *headers,
                        const char *body)
{
    buf_printf(b, "%s %s HTTP/1.1\r\nHost: test\r\n%s", method, path, headers);
    if (body != NULL)
        buf_printf(b, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    buf_puts(b, "\r\n");
    if (body != NULL)
        buf_puts(b, body);
}

void rig_post(int fd, const char *path, const char *headers, const char *body)
{
    struct buf b = {0};
    put_request(&b, "POST", path, headers, body);
    rig_send(fd, b.data, b.len);
    buf_done(&b);
}

void rig_ask(const struct rig *r, const char *method, const char *path, const char *headers,
             const char *body, struct reply *ret)
{
    struct buf b = {0};
    int fd = rig_connect(r);
    put_request(&b, method, path, headers, body);
    rig_send(fd, b.data, b.len);
    rig_receive(fd, ret);
    close(fd);
    buf_done(&b);
}
