/* Responses: headers that every answer carries, error bodies, CORS, streams. */
#include "daemon/http_exchange.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/json_out.h"

static const char *header_of(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

static bool origin_allowed(const struct conf *c, const char *origin)
{
    for (size_t i = 0; i < c->server_cors_origins_count; i++)
        if (strcmp(c->server_cors_origins[i], "*") == 0 ||
            strcmp(c->server_cors_origins[i], origin) == 0)
            return true;
    return false;
}

static bool add_cors(const struct exchange *x, struct MHD_Response *r)
{
    const char *origin = header_of(x, "Origin");
    if (origin == NULL || !origin_allowed(x->server->conf, origin))
        return false;
    MHD_add_response_header(r, "Access-Control-Allow-Origin", origin);
    MHD_add_response_header(r, "Vary", "Origin");
    MHD_add_response_header(r, "Access-Control-Expose-Headers",
                            "x-request-id, x-switchyard-expert, x-switchyard-reason, "
                            "x-switchyard-confidence, retry-after");
    return true;
}

static void add_decision(const struct api_call *call, struct MHD_Response *r)
{
    char text[32];
    if (call == NULL || call->expert == NULL)
        return;
    snprintf(text, sizeof text, "%.4f", call->confidence);
    MHD_add_response_header(r, "x-switchyard-expert", expert_info(call->expert)->name);
    MHD_add_response_header(r, "x-switchyard-reason", router_reason_name(call->reason));
    MHD_add_response_header(r, "x-switchyard-confidence", text);
}

static void add_common(const struct exchange *x, struct MHD_Response *r)
{
    const char *trace = header_of(x, "traceparent");
    MHD_add_response_header(r, "x-request-id", x->record.request_id);
    /* A header value with a control byte is refused by libmicrohttpd, which is what we want. */
    if (trace != NULL && strlen(trace) < 128)
        MHD_add_response_header(r, "traceparent", trace);
    add_cors(x, r);
    add_decision(x->stream != NULL ? stream_call(x->stream) : x->call, r);
}

static enum MHD_Result queue(struct exchange *x, int status, struct MHD_Response *r)
{
    x->record.status = status;
    enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return result;
}

static struct MHD_Response *response_of(struct buf *body)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(body->len, body->data, MHD_RESPMEM_MUST_FREE);
    if (r == NULL)
        buf_done(body);
    *body = (struct buf){0};
    return r;
}

enum MHD_Result answer_body(struct exchange *x, int status, const char *content_type,
                            struct buf *body)
{
    struct MHD_Response *r = response_of(body);
    if (r == NULL)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", content_type);
    add_common(x, r);
    return queue(x, status, r);
}

/* What tells a client's library whether and when to try again. */
static void add_retry(const struct err *e, uint32_t retry_after_s, struct MHD_Response *r)
{
    char text[16];
    if (retry_after_s > 0) {
        snprintf(text, sizeof text, "%u", retry_after_s);
        MHD_add_response_header(r, "Retry-After", text);
    }
    if (e->code == ERR_NO_MEMORY || e->code == ERR_LOAD_FAILED)
        MHD_add_response_header(r, "x-should-retry", "false");
    if (e->code == ERR_AUTH)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
}

enum MHD_Result answer_error(struct exchange *x, const struct err *e, uint32_t retry_after_s)
{
    struct buf body = {0};
    x->error = *e;
    api_put_error(&body, e);
    struct MHD_Response *r = response_of(&body);
    if (r == NULL)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", "application/json");
    add_retry(e, retry_after_s, r);
    add_common(x, r);
    return queue(x, err_http_status(e->code), r);
}

enum MHD_Result answer_method(struct exchange *x, const char *allowed)
{
    struct buf body = {0};
    buf_puts(&body, "{\"error\":{\"message\":");
    char *message = mem_format("%s is not allowed here; use %s", x->record.method, allowed);
    json_put_str(&body, message);
    buf_puts(&body, ",\"type\":\"invalid_request_error\",\"param\":null,"
                    "\"code\":\"method_not_allowed\"}}");
    err_set(&x->error, ERR_INVALID, "%s", message);
    free(message);
    struct MHD_Response *r = response_of(&body);
    if (r == NULL)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", "application/json");
    MHD_add_response_header(r, "Allow", allowed);
    add_common(x, r);
    return queue(x, MHD_HTTP_METHOD_NOT_ALLOWED, r);
}

enum MHD_Result answer_preflight(struct exchange *x, const char *allowed)
{
    const char *asked = header_of(x, "Access-Control-Request-Headers");
    struct MHD_Response *r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (r == NULL)
        return MHD_NO;
    MHD_add_response_header(r, "Allow", allowed);
    if (add_cors(x, r)) {
        MHD_add_response_header(r, "Access-Control-Allow-Methods", allowed);
        MHD_add_response_header(r, "Access-Control-Allow-Headers",
                                asked != NULL ? asked : "authorization, content-type");
        MHD_add_response_header(r, "Access-Control-Max-Age", "3600");
    }
    return queue(x, MHD_HTTP_NO_CONTENT, r);
}

enum MHD_Result answer_stream(struct exchange *x)
{
    /* 16 KiB: more than any burst of tokens; libmicrohttpd allots it per connection. */
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 * BASE_KIB,
                                                               stream_read, x->stream, NULL);
    if (r == NULL)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", "text/event-stream; charset=utf-8");
    MHD_add_response_header(r, "Cache-Control", "no-cache");
    MHD_add_response_header(r, "X-Accel-Buffering", "no");
    add_common(x, r);
    return queue(x, MHD_HTTP_OK, r);
}
