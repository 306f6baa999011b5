/* Connections: listening sockets, libmicrohttpd with epoll threads, bodies within bounds, clients
 * that are too slow. What the requests mean is in http_route.c. */
#include "daemon/http.h"

#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "daemon/http_conn.h"
#include "daemon/http_exchange.h"
#include "daemon/log.h"

#define CONNECTIONS_MAX 2048
#define CONNECTION_IDLE_S 120           /* no byte either way */
#define CONNECTION_POOL (32 * BASE_KIB) /* headers and write buffer of one connection */
#define RECEIVE_NS 60000000000ull       /* a whole request must be in by then: 8 MiB at 140 KB/s */
#define THREADS 2
#define LISTENERS 2    /* TCP and the unix socket */
#define BODIES_HELD 32 /* all bodies in memory together: this many of the largest */
/* A body this many times too long is read and dropped, so that the client sees the answer; a longer
 * one is cut off. */
#define DISCARD_FACTOR 8

struct http {
    struct server *server;
    struct MHD_Daemon *daemon[LISTENERS];
    int listener[LISTENERS]; /* libmicrohttpd closes them; -1 = none */
    size_t listeners;
    char *unix_path; /* to unlink at the end */
    char address[300];
    struct streams *streams;
    struct conns *conns;
    pthread_key_t scratch_key;
    bool scratch_ready, stopped;
    _Atomic size_t bytes_held;
    size_t bytes_max;
};

const char *http_address(const struct http *h)
{
    return h->address;
}

struct streams *http_streams(struct http *h)
{
    return h->streams;
}

bool http_hold_bytes(struct http *h, size_t bytes)
{
    if (atomic_fetch_add(&h->bytes_held, bytes) + bytes <= h->bytes_max)
        return true;
    atomic_fetch_sub(&h->bytes_held, bytes);
    return false;
}

void http_drop_bytes(struct http *h, size_t bytes)
{
    atomic_fetch_sub(&h->bytes_held, bytes);
}

/* ---- one router scratch per thread ---------------------------------------------------------- */

static void close_scratch(void *scratch)
{
    struct router_scratch *s = scratch;
    router_scratch_close(&s);
}

struct router_scratch *http_scratch(struct http *h)
{
    if (h->server->head == NULL)
        return NULL;
    struct router_scratch *s = pthread_getspecific(h->scratch_key);
    if (s == NULL) {
        s = router_scratch_open(h->server->head);
        pthread_setspecific(h->scratch_key, s);
    }
    return s;
}

/* ---- exchanges ------------------------------------------------------------------------------ */

/* The client's id if it is short and printable: it goes into a header and a log line. */
static void take_request_id(struct exchange *x)
{
    static _Atomic uint64_t counter;
    struct http_record *rec = &x->record;
    const char *given = MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "x-request-id");
    size_t len = given != NULL ? strlen(given) : 0;
    bool good = len > 0 && len < sizeof rec->request_id;
    for (size_t i = 0; good && i < len; i++)
        good = given[i] > 0x20 && given[i] < 0x7f;
    if (good) {
        memcpy(rec->request_id, given, len + 1);
        return;
    }
    uint64_t seed[2] = {atomic_fetch_add(&counter, 1), clock_wall_ms()};
    snprintf(rec->request_id, sizeof rec->request_id, "req-%016llx",
             (unsigned long long)hash64_of(seed, sizeof seed, x->server->started_ns));
}

static uint64_t declared_length(const struct exchange *x)
{
    const char *text =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Content-Length");
    return text != NULL ? strtoull(text, NULL, 10) : 0;
}

static void refuse_too_large(struct exchange *x)
{
    char limit[32];
    if (x->refusal.code == ERR_OK)
        err_set(&x->refusal, ERR_TOO_LARGE,
                "the body is larger than this server's limit of %s (server.max_body_bytes)",
                size_format(x->server->conf->server_max_body_bytes, limit, sizeof limit));
}

static enum MHD_Result exchange_begin(struct http *h, struct MHD_Connection *connection,
                                      const char *path, const char *method, void **con_cls)
{
    struct exchange *x = mem_alloc(sizeof *x);
    uint64_t max = h->server->conf->server_max_body_bytes;
    *con_cls = x;
    x->http = h;
    x->server = h->server;
    x->connection = connection;
    x->record.received_ns = clock_ns();
    snprintf(x->record.method, sizeof x->record.method, "%s", method);
    snprintf(x->record.path, sizeof x->record.path, "%s", path);
    take_request_id(x);
    route_find(x, path, method);
    route_check(x);
    uint64_t length = declared_length(x);
    if (length > max)
        refuse_too_large(x);
    bool asks = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Expect") != NULL;
    /* Refused before the body is sent where that can work; a client that does not wait for leave
     * would find its connection reset instead of an answer. */
    if (x->refusal.code != ERR_OK && (asks || length > max * DISCARD_FACTOR))
        return route_run(x);
    return MHD_YES;
}

static enum MHD_Result exchange_take(struct exchange *x, const char *data, size_t len)
{
    uint64_t max = x->server->conf->server_max_body_bytes;
    x->body_seen += len;
    if (x->body_seen > max * DISCARD_FACTOR)
        return MHD_NO;
    if (x->body_seen > max)
        refuse_too_large(x);
    if (x->refusal.code == ERR_OK && !http_hold_bytes(x->http, len))
        err_set(&x->refusal, ERR_BUSY, "too many large requests are being received at once");
    if (x->refusal.code == ERR_OK) {
        buf_append(&x->body, data, len);
    } else {
        http_drop_bytes(x->http, x->body.len);
        buf_done(&x->body);
    }
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload_data,
                                  size_t *upload_data_size, void **con_cls)
{
    struct exchange *x = *con_cls;
    if (x == NULL)
        return exchange_begin(cls, connection, url, method, con_cls);
    if (*upload_data_size > 0) {
        size_t len = *upload_data_size;
        *upload_data_size = 0;
        return exchange_take(x, upload_data, len);
    }
    conns_received(connection);
    return route_run(x);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode toe)
{
    struct exchange *x = *con_cls;
    const struct err *e;
    conns_answered(connection);
    if (x == NULL)
        return;
    *con_cls = NULL;
    e = x->error.code != ERR_OK ? &x->error : NULL;
    if (x->record.status == 0)
        x->record.status = 499; /* it never got an answer */
    if (x->stream != NULL) {
        /* A streamed answer that did not go out whole was not a success. */
        bool cut = x->record.status == 200 && toe != MHD_REQUEST_TERMINATED_COMPLETED_OK;
        stream_detach(&x->stream, cut ? 499 : x->record.status, e);
    } else if (!route_is_quiet(x) || x->record.status >= 400) {
        http_record_end(x->server, &x->record, x->call, e);
    }
    api_call_close(&x->call);
    http_job_close(&x->job);
    http_drop_bytes(x->http, x->body.len);
    buf_done(&x->body);
    free(x->rest);
    free(x);
}

static void on_log(void *cls, const char *format, va_list ap) BASE_PRINTF(2, 0);
static void on_log(void *cls, const char *format, va_list ap)
{
    struct http *h = cls;
    char text[400];
    vsnprintf(text, sizeof text, format, ap);
    text[strcspn(text, "\n")] = 0;
    logger_event(h->server->log, LOG_DEBUG, "http", "%s", text);
}

/* ---- listening ------------------------------------------------------------------------------ */

static enum err_code bind_refused(const struct conf *c, struct err *e)
{
    int why = errno;
    const char *host = c->server_host;
    unsigned port = c->server_port;
    if (why == EADDRINUSE)
        return err_set_param(e, ERR_BUSY, "server.port",
                             "port %u on %s is in use: is another server running? Choose another "
                             "with --port, or --port 0 for any free one",
                             port, host);
    if (why == EACCES)
        return err_set_param(e, ERR_PERMISSION, "server.port",
                             "port %u on %s may not be used by this user; take one above 1023",
                             port, host);
    errno = why;
    return err_set_errno(e, ERR_IO, "cannot listen on %s port %u", host, port);
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24) == 127;
    return a->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static enum err_code listen_at(struct http *h, const struct addrinfo *a, struct err *e)
{
    const struct conf *c = h->server->conf;
    int one = 1, fd;
    if (!is_loopback(a->ai_addr) && c->server_api_keys_count == 0)
        return err_set_param(e, ERR_PERMISSION, "server.host",
                             "%s can be reached from other machines, and no API key is set: set "
                             "server.api_keys (SWITCHYARD_SERVER_API_KEYS), or listen on 127.0.0.1",
                             c->server_host);
    fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set_errno(e, ERR_IO, "cannot open a socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, 512) != 0) {
        enum err_code code = bind_refused(c, e);
        close(fd);
        return code;
    }
    h->listener[h->listeners++] = fd;
    return ERR_OK;
}

/* The port that was given, or that the system chose for 0. */
static void note_address(struct http *h)
{
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof a;
    char host[128] = "?", port[16] = "0";
    getsockname(h->listener[0], (struct sockaddr *)&a, &len);
    getnameinfo((struct sockaddr *)&a, len, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(h->address, sizeof h->address,
             a.ss_family == AF_INET6 ? "http://[%s]:%s" : "http://%s:%s", host, port);
}

static enum err_code listen_tcp(struct http *h, struct err *e)
{
    const struct conf *c = h->server->conf;
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char port[16];
    snprintf(port, sizeof port, "%u", c->server_port);
    int failed = getaddrinfo(c->server_host, port, &hints, &found);
    if (failed != 0)
        return err_set_param(e, ERR_INVALID, "server.host", "there is no address '%s': %s",
                             c->server_host, gai_strerror(failed));
    enum err_code code = listen_at(h, found, e);
    freeaddrinfo(found);
    if (code == ERR_OK)
        note_address(h);
    return code;
}

/* A socket file that nobody answers at is left over from a crash. */
static enum err_code clear_stale(const struct sockaddr_un *a, struct err *e)
{
    struct stat st;
    if (lstat(a->sun_path, &st) != 0)
        return ERR_OK;
    if (!S_ISSOCK(st.st_mode))
        return err_set_param(e, ERR_EXISTS, "server.unix_socket",
                             "%s exists and is not a socket; it is left alone", a->sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int answered = fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof *a) == 0;
    if (fd >= 0)
        close(fd);
    if (answered)
        return err_set_param(e, ERR_BUSY, "server.unix_socket", "another server answers at %s",
                             a->sun_path);
    unlink(a->sun_path);
    return ERR_OK;
}

static enum err_code listen_unix(struct http *h, struct err *e)
{
    const char *path = h->server->conf->server_unix_socket;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path)
        return err_set_param(e, ERR_INVALID, "server.unix_socket",
                             "the path %s is longer than the %zu bytes the system allows", path,
                             sizeof a.sun_path - 1);
    memcpy(a.sun_path, path, strlen(path) + 1);
    enum err_code code = clear_stale(&a, e);
    if (code != ERR_OK)
        return code;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 512) != 0) {
        code = err_set_errno(e, ERR_IO, "cannot listen at %s", path);
        if (fd >= 0)
            close(fd);
        return code;
    }
    chmod(path, 0660);
    h->unix_path = mem_strdup(path);
    h->listener[h->listeners++] = fd;
    return ERR_OK;
}

/* ---- libmicrohttpd -------------------------------------------------------------------------- */

/* Descriptors: one per connection, and what the rest of the process needs. */
static unsigned connection_limit(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0)
        return 256;
    if (files.rlim_cur < 2 * CONNECTIONS_MAX && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = BASE_MIN(files.rlim_max, 2 * CONNECTIONS_MAX);
        setrlimit(RLIMIT_NOFILE, &files);
        getrlimit(RLIMIT_NOFILE, &files);
    }
    uint64_t room = files.rlim_cur > 128 ? files.rlim_cur - 64 : 64;
    return (unsigned)BASE_MIN(room, CONNECTIONS_MAX);
}

static enum err_code start_daemon(struct http *h, size_t idx, unsigned limit, struct err *e)
{
    unsigned flags =
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | MHD_USE_ITC;
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof a;
    getsockname(h->listener[idx], (struct sockaddr *)&a, &len);
    if (a.ss_family == AF_INET6)
        flags |= MHD_USE_IPv6;
    h->daemon[idx] = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, h,
        MHD_OPTION_LISTEN_SOCKET, h->listener[idx], MHD_OPTION_THREAD_POOL_SIZE, (unsigned)THREADS,
        MHD_OPTION_CONNECTION_LIMIT, limit, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)CONNECTION_IDLE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_POOL,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_NOTIFY_CONNECTION, conns_notify,
        h->conns, MHD_OPTION_END);
    if (h->daemon[idx] == NULL)
        return err_set_errno(e, ERR_IO, "the HTTP library does not start");
    return ERR_OK;
}

static void tick(void *ctx)
{
    struct http *h = ctx;
    conns_tick(h->conns, clock_ns());
}

static enum err_code open_all(struct http *h, struct err *e)
{
    const struct conf *c = h->server->conf;
    unsigned limit = connection_limit();
    h->conns = conns_open(limit, RECEIVE_NS);
    enum err_code code = listen_tcp(h, e);
    if (code == ERR_OK && c->server_unix_socket[0] != 0)
        code = listen_unix(h, e);
    /* Twice: a call may outlive its connection until the engine lets go of it. */
    if (code == ERR_OK)
        code = streams_open(h->server, (size_t)limit * 2, tick, h, &h->streams, e);
    for (size_t i = 0; i < h->listeners && code == ERR_OK; i++)
        code = start_daemon(h, i, limit / (unsigned)h->listeners, e);
    return code;
}

enum err_code http_open(struct server *s, struct http **ret, struct err *e)
{
    struct http *h = mem_alloc(sizeof *h);
    h->server = s;
    h->bytes_max = (size_t)s->conf->server_max_body_bytes * BODIES_HELD;
    h->scratch_ready = pthread_key_create(&h->scratch_key, close_scratch) == 0;
    enum err_code code =
        h->scratch_ready ? open_all(h, e) : err_set(e, ERR_INTERNAL, "no thread key is left");
    if (code != ERR_OK) {
        http_stop(h, 0);
        http_close(&h);
        return code;
    }
    *ret = h;
    return ERR_OK;
}

/* ---- stopping ------------------------------------------------------------------------------- */

static bool wait_empty(struct http *h, uint64_t deadline_ns)
{
    const struct timespec nap = {.tv_nsec = 10000000};
    while (streams_count(h->streams) > 0) {
        if (clock_ns() >= deadline_ns)
            return false;
        nanosleep(&nap, NULL);
    }
    return true;
}

static void end_streams(struct http *h, uint64_t deadline_ns)
{
    if (wait_empty(h, deadline_ns))
        return;
    streams_cancel(h->streams);
    if (wait_empty(h, clock_ns() + 2000000000ull))
        return;
    /* The engine does not let go, or a client does not read: libmicrohttpd must find nothing
     * suspended. Again and again, for what was just about to suspend. */
    for (int i = 0; i < 20 && streams_count(h->streams) > 0; i++) {
        streams_abort(h->streams);
        wait_empty(h, clock_ns() + 50000000ull);
    }
}

void http_stop(struct http *h, uint64_t deadline_ns)
{
    if (h == NULL || h->stopped)
        return;
    h->stopped = true;
    if (h->streams != NULL)
        end_streams(h, deadline_ns);
    /* Each ends by itself, and libmicrohttpd must find nothing suspended. */
    while (atomic_load(&h->server->jobs) > 0)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    for (size_t i = 0; i < h->listeners; i++) {
        if (h->daemon[i] != NULL)
            MHD_stop_daemon(h->daemon[i]);
        else
            close(h->listener[i]);
        h->daemon[i] = NULL;
    }
    if (h->unix_path != NULL)
        unlink(h->unix_path);
}

void http_close(struct http **hp)
{
    struct http *h = *hp;
    *hp = NULL;
    if (h == NULL)
        return;
    http_stop(h, 0);
    streams_close(&h->streams);
    conns_close(&h->conns);
    if (h->scratch_ready)
        pthread_key_delete(h->scratch_key);
    free(h->unix_path);
    free(h);
}
