/* Paths, and what each does. */
#include "daemon/http_exchange.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/api_route.h"
#include "daemon/json_out.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

struct route {
    const char *path;   /* a prefix if it ends in '/' and is longer than that */
    const char *method; /* GET also answers HEAD */
    enum MHD_Result (*run)(struct exchange *x);
    bool open; /* needs no key: probes have none */
    bool quiet;
};

/* ---- generation ----------------------------------------------------------------------------- */

static const char *given_key(const struct exchange *x)
{
    const char *header =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Authorization");
    if (header != NULL && strncasecmp(header, "Bearer ", 7) == 0)
        return header + 7;
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "x-api-key");
}

static const char *header_of(void *ctx, const char *name)
{
    return MHD_lookup_connection_value(ctx, MHD_HEADER_KIND, name);
}

static void read_wishes(struct exchange *x)
{
    x->call->header = header_of;
    x->call->header_ctx = x->connection;
    struct api_options *o = &x->call->options;
    const char *wish =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "x-switchyard-account");
    if (wish != NULL && strcmp(wish, "0") != 0 && strcmp(wish, "false") != 0)
        o->want_account = true;
    x->call->key = given_key(x);
    snprintf(x->record.model, sizeof x->record.model, "%s", o->model);
    x->record.stream = o->stream;
}

/* From body to a call that is ready to run. */
static enum err_code make_call(struct exchange *x, enum api_kind kind, struct err *e)
{
    if (atomic_load(&x->server->draining))
        return err_set(e, ERR_SHUTDOWN, "the server is shutting down and takes no new requests");
    enum err_code code = api_call_open(x->server, kind, x->body.data != NULL ? x->body.data : "",
                                       x->body.len, &x->call, e);
    http_drop_bytes(x->http, x->body.len);
    buf_done(&x->body);
    if (code != ERR_OK)
        return code;
    x->call->received_ns = x->record.received_ns;
    read_wishes(x);
    return api_call_prepare(x->call, http_scratch(x->http), e);
}

static enum MHD_Result finish_whole(struct exchange *x)
{
    struct buf body = {0};
    struct err e = {0};
    if (!stream_wait_done(x->stream))
        return MHD_YES; /* suspended; this runs again */
    if (stream_gone(x->stream))
        return MHD_NO;
    if (api_call_render(stream_call(x->stream), &body, &e) != ERR_OK) {
        buf_done(&body);
        return answer_error(x, &e, 0);
    }
    return answer_body(x, MHD_HTTP_OK, "application/json", &body);
}

static enum MHD_Result run_generate(struct exchange *x, enum api_kind kind)
{
    struct err e = {0};
    uint32_t retry_after_s = 0;
    if (x->stream != NULL)
        return finish_whole(x);
    enum err_code code = make_call(x, kind, &e);
    if (code == ERR_OK)
        code =
            stream_open(http_streams(x->http), x->call, x->connection, &x->record, &x->stream, &e);
    if (code == ERR_OK) {
        x->call = NULL; /* the stream's now */
        code = stream_submit(x->stream, &retry_after_s, &e);
    }
    if (code == ERR_CANCELLED)
        return MHD_NO;
    if (code != ERR_OK)
        return answer_error(
            x, &e, code == ERR_QUEUE_FULL || code == ERR_SHUTDOWN ? BASE_MAX(retry_after_s, 1) : 0);
    return stream_call(x->stream)->options.stream ? answer_stream(x) : finish_whole(x);
}

static enum MHD_Result run_chat(struct exchange *x)
{
    return run_generate(x, API_CHAT);
}

static enum MHD_Result run_completion(struct exchange *x)
{
    return run_generate(x, API_COMPLETION);
}

/* ---- the rest ------------------------------------------------------------------------------- */

static enum MHD_Result run_models(struct exchange *x)
{
    struct buf body = {0};
    api_put_models(x->server, &body);
    return answer_body(x, MHD_HTTP_OK, "application/json", &body);
}

static enum MHD_Result run_model(struct exchange *x)
{
    struct buf body = {0};
    struct err e = {0};
    if (api_put_model(x->server, x->rest, &body, &e) != ERR_OK) {
        buf_done(&body);
        return answer_error(x, &e, 0);
    }
    return answer_body(x, MHD_HTTP_OK, "application/json", &body);
}

/* What the router would do with a body, and why; nothing runs. */
static enum MHD_Result run_route(struct exchange *x)
{
    struct buf body = {0};
    struct err e = {0};
    const struct api_call from = {
        .key = given_key(x), .header = header_of, .header_ctx = x->connection};
    if (api_put_route(x->server, x->body.data != NULL ? x->body.data : "", x->body.len, &from,
                      http_scratch(x->http), &body, &e) != ERR_OK) {
        buf_done(&body);
        return answer_error(x, &e, 0);
    }
    return answer_body(x, MHD_HTTP_OK, "application/json", &body);
}

static enum MHD_Result run_text(struct exchange *x, enum api_text what)
{
    struct buf body = {0};
    struct err e = {0};
    if (api_answer_text(x->server, what, given_key(x), x->body.data != NULL ? x->body.data : "",
                        x->body.len, &body, &e) != ERR_OK) {
        buf_done(&body);
        return answer_error(x, &e, 0);
    }
    return answer_body(x, MHD_HTTP_OK, "application/json", &body);
}

static enum MHD_Result run_tokenize(struct exchange *x)
{
    return run_text(x, API_TEXT_TOKENIZE);
}

static enum MHD_Result run_detokenize(struct exchange *x)
{
    return run_text(x, API_TEXT_DETOKENIZE);
}

static enum MHD_Result run_template(struct exchange *x)
{
    return run_text(x, API_TEXT_TEMPLATE);
}

static enum MHD_Result answer_status(struct exchange *x, int status, const char *word)
{
    struct buf body = {0};
    buf_printf(&body, "{\"status\":\"%s\"}\n", word);
    return answer_body(x, status, "application/json", &body);
}

/* Alive: the process answers. Says nothing about whether it should get traffic. */
static enum MHD_Result run_health(struct exchange *x)
{
    return answer_status(x, MHD_HTTP_OK, "ok");
}

static enum MHD_Result run_ready(struct exchange *x)
{
    if (atomic_load(&x->server->draining))
        return answer_status(x, MHD_HTTP_SERVICE_UNAVAILABLE, "draining");
    if (!server_ready(x->server))
        return answer_status(x, MHD_HTTP_SERVICE_UNAVAILABLE, "loading");
    return answer_status(x, MHD_HTTP_OK, "ready");
}

static enum MHD_Result run_metrics(struct exchange *x)
{
    struct buf body = {0};
    metrics_put(x->server, &body);
    return answer_body(x, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &body);
}

static enum MHD_Result run_root(struct exchange *x)
{
    struct buf body = {0};
    buf_puts(&body,
             "{\"name\":\"switchyard\",\"version\":\"" SWITCHYARD_VERSION "\",\"endpoints\":["
             "\"/v1/chat/completions\",\"/v1/completions\",\"/v1/embeddings\",\"/v1/route\",\"/v1/models\",\"/tokenize\","
             "\"/detokenize\",\"/apply-template\",\"/health\","
             "\"/ready\",\"/metrics\"]}\n");
    return answer_body(x, MHD_HTTP_OK, "application/json", &body);
}

/* ---- the table ------------------------------------------------------------------------------ */

/* The paths without /v1 are for clients that were given a base URL without it. */
static const struct route routes[] = {
    {"/v1/chat/completions", "POST", run_chat, false, false},
    {"/chat/completions", "POST", run_chat, false, false},
    {"/v1/completions", "POST", run_completion, false, false},
    {"/completions", "POST", run_completion, false, false},
    {"/v1/embeddings", "POST", http_run_embeddings, false, false},
    {"/embeddings", "POST", http_run_embeddings, false, false},
    {"/v1/route", "POST", run_route, false, false},
    {"/tokenize", "POST", run_tokenize, false, false},
    {"/detokenize", "POST", run_detokenize, false, false},
    {"/apply-template", "POST", run_template, false, false},
    {"/v1/models", "GET", run_models, false, true},
    {"/models", "GET", run_models, false, true},
    {"/v1/models/", "GET", run_model, false, true},
    {"/health", "GET", run_health, true, true},
    {"/ready", "GET", run_ready, true, true},
    {"/metrics", "GET", run_metrics, false, true},
    {"/", "GET", run_root, true, true},
};

static bool path_matches(const struct route *r, const char *path)
{
    size_t len = strlen(r->path);
    if (len > 1 && r->path[len - 1] == '/')
        return strncmp(path, r->path, len) == 0 && path[len] != 0;
    return strcmp(path, r->path) == 0;
}

void route_find(struct exchange *x, const char *path, const char *method)
{
    for (size_t i = 0; i < BASE_COUNT(routes) && x->route == NULL; i++)
        if (path_matches(&routes[i], path))
            x->route = &routes[i];
    if (x->route == NULL)
        return;
    size_t len = strlen(x->route->path);
    if (len > 1 && x->route->path[len - 1] == '/')
        x->rest = mem_strdup(path + len);
    x->method_ok = strcmp(method, x->route->method) == 0 ||
                   (strcmp(method, "HEAD") == 0 && strcmp(x->route->method, "GET") == 0);
}

bool route_is_quiet(const struct exchange *x)
{
    return (x->route != NULL && x->route->quiet) || strcmp(x->record.method, "OPTIONS") == 0;
}

/* ---- keys ----------------------------------------------------------------------------------- */

/* Takes the same time wherever two texts differ, so that a key cannot be found byte by byte. */
static bool equal_constant_time(const char *given, const char *key)
{
    size_t given_len = strlen(given), key_len = strlen(key);
    volatile unsigned char difference = given_len != key_len;
    for (size_t i = 0; i < key_len; i++)
        difference |= (unsigned char)(key[i] ^ given[i < given_len ? i : given_len]);
    return difference == 0;
}

static bool key_is_good(const struct exchange *x)
{
    const struct conf *c = x->server->conf;
    const char *given = given_key(x);
    bool good = false;
    for (size_t i = 0; given != NULL && i < c->server_api_keys_count; i++)
        good |= equal_constant_time(given, c->server_api_keys[i]);
    return good;
}

void route_check(struct exchange *x)
{
    bool open = x->route != NULL && x->route->open;
    if (x->server->conf->server_api_keys_count == 0 || open || key_is_good(x) ||
        strcmp(x->record.method, "OPTIONS") == 0)
        return;
    err_set(&x->refusal, ERR_AUTH,
            given_key(x) == NULL ? "an API key is needed; send it as 'Authorization: Bearer KEY'"
                                 : "this API key is not known");
}

enum MHD_Result route_run(struct exchange *x)
{
    struct err e = {0};
    if (x->refusal.code != ERR_OK) {
        e = x->refusal;
        return answer_error(x, &e, e.code == ERR_BUSY ? 1 : 0);
    }
    if (x->route == NULL) {
        err_set(&e, ERR_NOT_FOUND, "there is nothing at %s; GET / lists what is here",
                x->record.path);
        return answer_error(x, &e, 0);
    }
    const char *allowed =
        strcmp(x->route->method, "GET") == 0 ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    if (strcmp(x->record.method, "OPTIONS") == 0)
        return answer_preflight(x, allowed);
    if (!x->method_ok)
        return answer_method(x, allowed);
    return x->route->run(x);
}
