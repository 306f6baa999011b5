/* One HTTP request and its answer, between http.c (connections) and http_route.c (what to do).
 * An exchange belongs to the HTTP thread of its connection. Private to daemon/http*.c. */
#ifndef SWITCHYARD_DAEMON_HTTP_EXCHANGE_H
#define SWITCHYARD_DAEMON_HTTP_EXCHANGE_H

#include <microhttpd.h>

#include "daemon/http.h"
#include "daemon/stream.h"

struct route;

struct exchange {
    struct http *http;
    struct server *server;
    struct MHD_Connection *connection;
    struct http_record record;
    const struct route *route; /* NULL = no such path */
    char *rest;                /* of the path after a prefix route; owned */
    bool method_ok;
    struct buf body;
    size_t body_seen;      /* bytes that arrived, kept or not */
    struct err refusal;    /* decided before the body: answered once it is in */
    struct api_call *call; /* owned until a stream takes it */
    struct stream *stream;
    struct http_job *job; /* http_embeddings.c; NULL = none */
    struct err error; /* what was answered, for the log */
};

/* http_route.c */
void route_find(struct exchange *x, const char *path, const char *method);
/* Before the body: key and method. Fills in x->refusal. */
void route_check(struct exchange *x);
/* The body is in (or the connection was resumed): answer, or wait. */
enum MHD_Result route_run(struct exchange *x);
bool route_is_quiet(const struct exchange *x); /* not worth a log line when it went well */

/* http_embeddings.c: starts the work and answers when it is done; frees what was started. */
enum MHD_Result http_run_embeddings(struct exchange *x);
void http_job_close(struct http_job **j);

/* http_answer.c: each queues the answer and takes the body over. */
enum MHD_Result answer_body(struct exchange *x, int status, const char *content_type,
                            struct buf *body);
enum MHD_Result answer_error(struct exchange *x, const struct err *e, uint32_t retry_after_s);
enum MHD_Result answer_method(struct exchange *x, const char *allowed);
enum MHD_Result answer_preflight(struct exchange *x, const char *allowed);
enum MHD_Result answer_stream(struct exchange *x);

/* http.c */
struct router_scratch *http_scratch(struct http *h); /* the calling thread's; NULL without a head */
struct streams *http_streams(struct http *h);
/* Account for body bytes held in memory by all connections; false = too many. */
bool http_hold_bytes(struct http *h, size_t bytes);
void http_drop_bytes(struct http *h, size_t bytes);

#endif
