/* POST /v1/embeddings: vectors of the router's sentence encoder. Knows no connection. Private to
 * daemon/. */
#ifndef SWITCHYARD_DAEMON_API_EMBEDDINGS_H
#define SWITCHYARD_DAEMON_API_EMBEDDINGS_H

#include <jansson.h>

#include "daemon/routing.h"

#define API_EMBEDDINGS_MAX 2048 /* inputs of one body, as OpenAI has it */

struct api_embeddings {
    struct server *server;
    json_t *root; /* texts point into it */
    struct encoder_text *texts;
    int32_t *ids; /* of token inputs, all behind each other */
    size_t count;
    bool base64;
    float *vectors; /* [count, width], after run */
    uint64_t tokens;
};
/* Parse and check a body; nothing is computed yet. Errors name the field. */
enum err_code api_embeddings_open(struct server *s, const char *body, size_t len,
                                  struct api_embeddings **ret, struct err *e) BASE_NODISCARD;
/* The work: milliseconds per input. Any thread, once. */
enum err_code api_embeddings_run(struct api_embeddings *m, struct err *e) BASE_NODISCARD;
void api_embeddings_put(const struct api_embeddings *m, struct buf *out);
void api_embeddings_close(struct api_embeddings **m);

#endif
