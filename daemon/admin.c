/* Listeners, paths and orders. Requests are small and few: each is answered by the thread that took
 * it, which waits for the engine where it must, so a load that takes seconds keeps one thread of a
 * few. */
#include "daemon/admin.h"

#include <errno.h>
#include <jansson.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/api.h"
#include "daemon/engine_order.h"
#include "daemon/json_out.h"
#include "daemon/log.h"

#define BODY_MAX (64 * BASE_KIB)
#define THREADS 4
#define CONNECTIONS 64
#define PATIENCE_NS 60000000000ull /* for room to load into */

struct admin {
    struct server *server;
    struct MHD_Daemon *daemon[2];
    char *socket_path; /* to unlink at the end; NULL = none */
    char address[300];
};

struct admin_call {
    struct buf body;
    bool too_large;
};

char *admin_socket_path(const char *store_dir)
{
    return mem_format("%s/admin.sock", store_dir);
}

const char *admin_address(const struct admin *a)
{
    return a->address;
}

/* ---- answering ------------------------------------------------------------------------------ */

static enum MHD_Result answer(struct MHD_Connection *c, int status, struct buf *body)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(body->len, body->data, MHD_RESPMEM_MUST_FREE);
    if (r == NULL) {
        buf_done(body);
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", "application/json");
    enum MHD_Result result = MHD_queue_response(c, (unsigned)status, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result refuse(struct MHD_Connection *c, const struct err *e)
{
    struct buf body = {0};
    api_put_error(&body, e);
    return answer(c, err_http_status(e->code), &body);
}

/* ---- orders --------------------------------------------------------------------------------- */

static const struct {
    const char *word;
    enum engine_order_kind kind;
} verbs[] = {
    {"load", ENGINE_ORDER_LOAD},         {"unload", ENGINE_ORDER_UNLOAD},
    {"hold", ENGINE_ORDER_HOLD},         {"unhold", ENGINE_ORDER_UNHOLD},
    {"prefetch", ENGINE_ORDER_PREFETCH},
};

static void note(struct admin *a, const char *word, const struct engine_order *o)
{
    char text[32];
    if (o->error.code != ERR_OK)
        logger_event(a->server->log, LOG_WARN, "admin", "%s %s: %s", word,
                     o->expert ? expert_info(o->expert)->name : "tiers.hbm", o->error.msg);
    else
        logger_event(a->server->log, LOG_INFO, "admin", "%s %s: %s, %s, %.1f ms", word,
                     o->expert ? expert_info(o->expert)->name : "tiers.hbm",
                     memtier_tier_name(o->tier), size_format(o->bytes, text, sizeof text),
                     (double)o->ns * 1e-6);
}

/* {"to":"nvme"} of an unload, {"hold":false} of a hold. */
static enum err_code read_order(const json_t *body, struct engine_order *o, struct err *e)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)body, key, value)
    {
        const char *text = json_is_string(value) ? json_string_value(value) : "";
        bool to = o->kind == ENGINE_ORDER_UNLOAD && strcmp(key, "to") == 0 &&
                  (strcmp(text, "nvme") == 0 || strcmp(text, "ddr") == 0);
        bool hold =
            o->kind == ENGINE_ORDER_HOLD && strcmp(key, "hold") == 0 && json_is_boolean(value);
        if (!to && !hold)
            return err_set_param(e, ERR_INVALID, key,
                                 "'%.60s': an unload takes {\"to\": \"ddr\"|\"nvme\"}, a hold "
                                 "{\"hold\": true|false}, the others nothing",
                                 key);
        if (to)
            o->to_nvme = text[0] == 'n';
        if (hold && json_is_false(value))
            o->kind = ENGINE_ORDER_UNHOLD;
    }
    return ERR_OK;
}

static enum MHD_Result run_expert(struct admin *a, struct MHD_Connection *c, char *path,
                                  const json_t *body, bool post)
{
    struct err e = {0};
    struct buf out = {0};
    char *slash = strrchr(path, '/');
    struct expert *ex = server_find_expert(a->server, path);
    if (ex != NULL && !post) {
        admin_put_expert(a->server, ex, &out);
        return answer(c, MHD_HTTP_OK, &out);
    }
    size_t verb = BASE_COUNT(verbs);
    for (size_t i = 0; slash != NULL && i < BASE_COUNT(verbs); i++)
        verb = strcmp(slash + 1, verbs[i].word) == 0 ? i : verb;
    if (verb == BASE_COUNT(verbs) || !post) {
        err_set(&e, ERR_NOT_FOUND,
                "GET /admin/experts/NAME, or POST to .../load, unload, hold, unhold "
                "or prefetch; there is no expert '%.80s'",
                path);
        return refuse(c, &e);
    }
    *slash = 0;
    ex = server_find_expert(a->server, path);
    if (ex == NULL) {
        err_set(&e, ERR_MODEL, "there is no expert '%.80s'", path);
        return refuse(c, &e);
    }
    struct engine_order o = {.kind = verbs[verb].kind, .expert = ex, .patience_ns = PATIENCE_NS};
    if (read_order(body, &o, &e) != ERR_OK)
        return refuse(c, &e);
    enum err_code code = engine_order_run(a->server->engine, &o, &e);
    note(a, verbs[verb].word, &o);
    if (code != ERR_OK)
        return refuse(c, &e);
    buf_puts(&out, "{\"expert\":");
    json_put_str(&out, expert_info(ex)->name);
    buf_printf(&out, ",\"order\":\"%s\",\"tier\":\"%s\",\"bytes\":%llu,\"ms\":", verbs[verb].word,
               memtier_tier_name(o.tier), (unsigned long long)o.bytes);
    json_put_ms(&out, o.ns);
    buf_puts(&out, "}\n");
    return answer(c, MHD_HTTP_OK, &out);
}

static enum err_code read_budget(const json_t *body, uint64_t *ret, struct err *e)
{
    json_t *hbm = json_object_get(body, "hbm");
    if (json_is_integer(hbm) && json_integer_value(hbm) > 0 && json_object_size(body) == 1) {
        *ret = (uint64_t)json_integer_value(hbm);
        return ERR_OK;
    }
    if (json_is_string(hbm) && json_object_size(body) == 1)
        return size_parse(json_string_value(hbm), ret, e);
    return err_set_param(e, ERR_INVALID, "hbm",
                         "the body is {\"hbm\": \"2GiB\"}, or a number of bytes");
}

static enum MHD_Result run_budget(struct admin *a, struct MHD_Connection *c, const json_t *body)
{
    struct err e = {0};
    struct buf out = {0};
    struct engine_order o = {.kind = ENGINE_ORDER_BUDGET};
    if (read_budget(body, &o.hbm_bytes, &e) != ERR_OK)
        return refuse(c, &e);
    enum err_code code = engine_order_run(a->server->engine, &o, &e);
    note(a, "budget", &o);
    if (code != ERR_OK)
        return refuse(c, &e);
    admin_put_tiers(a->server, &out);
    return answer(c, MHD_HTTP_OK, &out);
}

/* ---- paths ---------------------------------------------------------------------------------- */

static bool key_is_good(const struct admin *a, struct MHD_Connection *c)
{
    const struct conf *conf = a->server->conf;
    const char *given = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
    bool good = conf->server_api_keys_count == 0;
    for (size_t i = 0; i < conf->server_api_keys_count && given; i++) {
        const char *key = conf->server_api_keys[i];
        size_t len = strlen(key), given_len = strlen(given);
        volatile unsigned char differ =
            given_len != len + 7 || strncasecmp(given, "Bearer ", 7) != 0;
        for (size_t k = 0; k < len && given_len == len + 7; k++)
            differ |= (unsigned char)(key[k] ^ given[7 + k]);
        good |= differ == 0;
    }
    return good;
}

static enum MHD_Result run(struct admin *a, struct MHD_Connection *c, const char *url,
                           const char *method, const struct admin_call *call)
{
    static const char experts[] = "/admin/experts/";
    bool post = strcmp(method, "POST") == 0;
    struct err e = {0};
    struct buf out = {0};
    json_t *body =
        call->body.len ? json_loadb(call->body.data, call->body.len, 0, NULL) : json_object();
    enum MHD_Result result;
    if (call->too_large || !json_is_object(body)) {
        err_set(&e, call->too_large ? ERR_TOO_LARGE : ERR_INVALID,
                "the body must be a small JSON object");
        result = refuse(c, &e);
    } else if (!post && strcmp(method, "GET") != 0) {
        err_set(&e, ERR_INVALID, "use GET or POST");
        result = refuse(c, &e);
    } else if (strcmp(url, "/admin/tiers") == 0 && post) {
        result = run_budget(a, c, body);
    } else if (strcmp(url, "/admin/tiers") == 0) {
        admin_put_tiers(a->server, &out);
        result = answer(c, MHD_HTTP_OK, &out);
    } else if (strncmp(url, experts, sizeof experts - 1) == 0) {
        char *path = mem_strdup(url + sizeof experts - 1);
        result = run_expert(a, c, path, body, post);
        free(path);
    } else {
        err_set(&e, ERR_NOT_FOUND,
                "there is nothing at %.100s: /admin/tiers and /admin/experts/NAME are", url);
        result = refuse(c, &e);
    }
    json_decref(body);
    return result;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_len, void **con_cls)
{
    struct admin *a = cls;
    struct admin_call *call = *con_cls;
    struct err e = {0};
    (void)version;
    if (call == NULL) {
        *con_cls = mem_alloc(sizeof *call);
        return MHD_YES;
    }
    if (*data_len > 0) {
        call->too_large |= call->body.len + *data_len > BODY_MAX;
        if (!call->too_large)
            buf_append(&call->body, data, *data_len);
        *data_len = 0;
        return MHD_YES;
    }
    /* Programs send no Origin; a page that somebody visits on this machine does. */
    if (MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Origin") != NULL) {
        err_set(&e, ERR_PERMISSION, "the admin listener takes no requests from web pages");
        return refuse(c, &e);
    }
    if (key_is_good(a, c))
        return run(a, c, url, method, call);
    err_set(&e, ERR_AUTH, "an API key is needed; send it as 'Authorization: Bearer KEY'");
    return refuse(c, &e);
}

static void on_completed(void *cls, struct MHD_Connection *c, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    struct admin_call *call = *con_cls;
    (void)cls;
    (void)c;
    (void)why;
    *con_cls = NULL;
    if (call == NULL)
        return;
    buf_done(&call->body);
    free(call);
}

/* ---- listening ------------------------------------------------------------------------------ */

static struct MHD_Daemon *start(struct admin *a, int fd)
{
    return MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, a,
                            MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_THREAD_POOL_SIZE,
                            (unsigned)THREADS, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS,
                            MHD_OPTION_CONNECTION_TIMEOUT, 120u, MHD_OPTION_NOTIFY_COMPLETED,
                            on_completed, NULL, MHD_OPTION_END);
}

static int bound(int family, const void *address, socklen_t len)
{
    int one = 1, fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, address, len) == 0 && listen(fd, 64) == 0)
        return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

/* The store's lock is ours, so a socket that is there is of a server that died. */
static enum err_code listen_socket(struct admin *a, struct err *e)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char *path = admin_socket_path(memtier_store_path(a->server->store));
    if (strlen(path) >= sizeof at.sun_path) {
        free(path);
        return ERR_OK;
    }
    memcpy(at.sun_path, path, strlen(path) + 1);
    (void)unlink(path);
    mode_t before = umask(0177); /* 0600 from the first moment */
    int fd = bound(AF_UNIX, &at, sizeof at);
    umask(before);
    a->socket_path = path;
    a->daemon[0] = fd >= 0 ? start(a, fd) : NULL;
    if (a->daemon[0] == NULL) {
        enum err_code code = err_set_errno(e, ERR_IO, "cannot listen at %s", path);
        if (fd >= 0)
            close(fd);
        return code;
    }
    snprintf(a->address, sizeof a->address, "unix:%s", path);
    return ERR_OK;
}

static enum err_code listen_port(struct admin *a, struct err *e)
{
    unsigned port = a->server->conf->server_admin_port;
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = bound(AF_INET, &at, sizeof at);
    a->daemon[1] = fd >= 0 ? start(a, fd) : NULL;
    if (a->daemon[1] == NULL) {
        int why = errno;
        if (fd >= 0)
            close(fd);
        errno = why;
        return err_set_errno(e, why == EADDRINUSE ? ERR_BUSY : ERR_IO,
                             "server.admin_port: cannot listen on 127.0.0.1 port %u", port);
    }
    size_t len = strlen(a->address);
    snprintf(a->address + len, sizeof a->address - len, "%shttp://127.0.0.1:%u", len ? " " : "",
             port);
    return ERR_OK;
}

enum err_code admin_open(struct server *s, struct admin **ret, struct err *e)
{
    struct admin *a = mem_alloc(sizeof *a);
    a->server = s;
    enum err_code code = listen_socket(a, e);
    if (code == ERR_OK && s->conf->server_admin_port != 0)
        code = listen_port(a, e);
    if (code != ERR_OK) {
        admin_close(&a);
        return code;
    }
    *ret = a;
    return ERR_OK;
}

void admin_close(struct admin **ap)
{
    struct admin *a = *ap;
    *ap = NULL;
    if (a == NULL)
        return;
    for (size_t i = 0; i < BASE_COUNT(a->daemon); i++)
        if (a->daemon[i] != NULL)
            MHD_stop_daemon(a->daemon[i]);
    if (a->socket_path != NULL)
        (void)unlink(a->socket_path);
    free(a->socket_path);
    free(a);
}
