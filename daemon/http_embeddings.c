/* Embeddings off the HTTP threads: a list of two thousand texts is seconds of work, and an HTTP
 * thread feeds many streams. The connection is suspended while a thread of its own does the work.
 */
#include "daemon/http_exchange.h"

#include <stdlib.h>

#include "daemon/api_embeddings.h"

#define JOBS_MAX 16 /* at once: more would only wait for the encoder */

/* The worker's until `done`, then the HTTP thread's of the connection. */
struct http_job {
    struct api_embeddings *work;
    struct MHD_Connection *connection;
    struct server *server;
    pthread_t thread;
    enum err_code code;
    struct err err;
    atomic_bool done; /* release pairs with the acquire of the exchange */
};

static void *run_job(void *arg)
{
    struct http_job *j = arg;
    struct server *s = j->server;
    struct MHD_Connection *connection = j->connection;
    j->code = api_embeddings_run(j->work, &j->err);
    /* release: pairs with the acquire in http_run_embeddings; code and err are whole before it. */
    atomic_store_explicit(&j->done, true, memory_order_release);
    MHD_resume_connection(connection);
    atomic_fetch_sub(&s->jobs, 1);
    return NULL;
}

void http_job_close(struct http_job **j)
{
    if (*j == NULL)
        return;
    thread_join((*j)->thread);
    api_embeddings_close(&(*j)->work);
    free(*j);
    *j = NULL;
}

static enum err_code start(struct exchange *x, struct err *e)
{
    struct http_job *j = mem_alloc(sizeof *j);
    j->server = x->server;
    j->connection = x->connection;
    enum err_code code = api_embeddings_open(x->server, x->body.data != NULL ? x->body.data : "",
                                             x->body.len, &j->work, e);
    if (code == ERR_OK && atomic_load(&x->server->draining))
        code = err_set(e, ERR_SHUTDOWN, "the server is shutting down and takes no new requests");
    if (code == ERR_OK && atomic_fetch_add(&x->server->jobs, 1) >= JOBS_MAX) {
        atomic_fetch_sub(&x->server->jobs, 1);
        code =
            err_set(e, ERR_QUEUE_FULL, "%d requests for embeddings are running already", JOBS_MAX);
    }
    if (code == ERR_OK) {
        MHD_suspend_connection(x->connection);
        x->job = j;
        code = thread_start(&j->thread, "embed", run_job, j, e);
        if (code == ERR_OK)
            return ERR_OK;
        x->job = NULL;
        MHD_resume_connection(x->connection);
        atomic_fetch_sub(&x->server->jobs, 1);
    }
    api_embeddings_close(&j->work);
    free(j);
    return code;
}

enum MHD_Result http_run_embeddings(struct exchange *x)
{
    struct err e = {0};
    struct buf body = {0};
    if (x->job == NULL) {
        enum err_code code = start(x, &e);
        return code == ERR_OK ? MHD_YES : answer_error(x, &e, code == ERR_QUEUE_FULL ? 1 : 0);
    }
    /* acquire: pairs with the release in run_job. */
    if (!atomic_load_explicit(&x->job->done, memory_order_acquire))
        return MHD_YES;
    e = x->job->err;
    if (x->job->code != ERR_OK)
        return answer_error(x, &e, 0);
    api_embeddings_put(x->job->work, &body);
    return answer_body(x, MHD_HTTP_OK, "application/json", &body);
}
