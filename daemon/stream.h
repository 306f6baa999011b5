/* Waiting for the engine. An HTTP connection whose answer is not there yet is suspended; one thread
 * watches all of them: it resumes those for which the engine published something, notices clients
 * that hung up (libmicrohttpd does not look at suspended sockets), and keeps idle streams alive.
 *
 * A fixed table of slots, one per call under way, so that a late event finds a slot of another
 * generation and never freed memory. Locks are per slot: streams share none. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_STREAM_H
#define SWITCHYARD_DAEMON_STREAM_H

#include <microhttpd.h>

#include "daemon/api.h"

/* What is known of one HTTP request for the log. */
struct http_record {
    char request_id[132]; /* the client's or ours */
    char method[12], path[100], model[100];
    int status;
    uint64_t received_ns;
    bool stream;
};
/* The request is over: count it and log it. `call` may be NULL; `e` the error that was answered, or
 * NULL. Any thread. */
void http_record_end(struct server *s, const struct http_record *rec, const struct api_call *call,
                     const struct err *e);

struct streams;
struct stream;

/* `tick` is called with `ctx` about once a second on the stream thread; NULL = nothing. */
enum err_code streams_open(struct server *s, size_t capacity, void (*tick)(void *ctx), void *ctx,
                           struct streams **ret, struct err *e) BASE_NODISCARD;
/* After libmicrohttpd and the engine have stopped. */
void streams_close(struct streams **h);
size_t streams_count(const struct streams *h); /* calls under way; any thread */
/* Ask the engine to end everything; the answers still go out. Any thread. */
void streams_cancel(struct streams *h);
/* End every connection without waiting for the engine. Any thread. */
void streams_abort(struct streams *h);

/* A slot for `call`, whose ownership moves to it. ERR_QUEUE_FULL when all are taken (the call stays
 * the caller's). HTTP thread, as all below. */
enum err_code stream_open(struct streams *h, struct api_call *call,
                          struct MHD_Connection *connection, const struct http_record *rec,
                          struct stream **ret, struct err *e) BASE_NODISCARD;
struct api_call *stream_call(struct stream *s);
/* Give the call to the engine. On failure the stream is only good for stream_detach. */
enum err_code stream_submit(struct stream *s, uint32_t *ret_retry_after_s,
                            struct err *e) BASE_NODISCARD;
/* For whole answers: true = the engine is done or the client is gone; false = the connection is
 * suspended, and the handler runs again after it is resumed. */
bool stream_wait_done(struct stream *s);
bool stream_gone(struct stream *s); /* the client hung up */
/* For streamed answers: the reader of the response. cls is the stream. */
ssize_t stream_read(void *cls, uint64_t pos, char *to, size_t max);
/* The connection is finished with this request. `status` is what was answered; `e` the error that
 * was answered instead of a result, or NULL. The call is cancelled if it still runs, and logged. */
void stream_detach(struct stream **s, int status, const struct err *e);

#endif
