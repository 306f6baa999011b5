/* The encoder behind the router. It runs on the thread that asks, under a lock: a prompt costs two
 * milliseconds, less than handing it to another thread would at a busy moment, and the engine's
 * thread and its steps are never held up by it. */
#include "daemon/route_encoder.h"

#include <stdlib.h>

#define TEXTS_MAX 64 /* of one call through the router's view */

struct route_encoder {
    struct encoder *encoder;
    struct router_encoder view;
    pthread_mutex_t mutex; /* guards the encoder's step; no other lock is taken under it */
};

static enum err_code encode_turns(void *ctx, const struct router_turn *texts, size_t count,
                                  float *ret, struct err *e)
{
    struct route_encoder *r = ctx;
    size_t width = encoder_width(r->encoder);
    enum err_code code = ERR_OK;
    for (size_t at = 0; at < count && code == ERR_OK; at += TEXTS_MAX) {
        struct encoder_text t[TEXTS_MAX];
        size_t n = BASE_MIN(count - at, (size_t)TEXTS_MAX);
        for (size_t i = 0; i < n; i++)
            t[i] = (struct encoder_text){.text = texts[at + i].text, .len = texts[at + i].len};
        pthread_mutex_lock(&r->mutex);
        code = encoder_encode(r->encoder, t, n, ROUTE_ENCODER_TOKENS, ret + at * width, NULL, e);
        pthread_mutex_unlock(&r->mutex);
    }
    return code;
}

enum err_code route_encoder_open(const char *path, struct route_encoder **ret, struct err *e)
{
    struct route_encoder *r = mem_alloc(sizeof(*r));
    const struct encoder_options opt = {
        .path = path, .numerics = RDU_NUMERICS_INT8, .exec = RDU_EXEC_FUSED};
    enum err_code code = encoder_open(&opt, &r->encoder, e);
    if (code != ERR_OK) {
        free(r);
        return code;
    }
    pthread_mutex_init(&r->mutex, NULL);
    r->view = (struct router_encoder){.width = encoder_width(r->encoder),
                                      .id = encoder_id(r->encoder),
                                      .ctx = r,
                                      .encode = encode_turns};
    *ret = r;
    return ERR_OK;
}

void route_encoder_close(struct route_encoder **r)
{
    if (*r == NULL)
        return;
    encoder_close(&(*r)->encoder);
    pthread_mutex_destroy(&(*r)->mutex);
    free(*r);
    *r = NULL;
}

const struct router_encoder *route_encoder_view(const struct route_encoder *r)
{
    return r ? &r->view : NULL;
}

const struct encoder *route_encoder_model(const struct route_encoder *r)
{
    return r->encoder;
}

enum err_code route_encoder_encode(struct route_encoder *r, const struct encoder_text *texts,
                                   size_t count, float *ret, uint64_t *ret_tokens, struct err *e)
{
    pthread_mutex_lock(&r->mutex);
    enum err_code code = encoder_encode(r->encoder, texts, count, 0, ret, ret_tokens, e);
    pthread_mutex_unlock(&r->mutex);
    return code;
}
