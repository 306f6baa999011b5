/* The sentence encoder as the router and /v1/embeddings use it: one model, one caller at a time.
 * Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_ROUTE_ENCODER_H
#define SWITCHYARD_DAEMON_ROUTE_ENCODER_H

#include "experts/experts.h"
#include "router/router.h"

#define ROUTE_ENCODER_TOKENS 128 /* of a prompt that routing reads: both ends of a longer one */

struct route_encoder;
enum err_code route_encoder_open(const char *path, struct route_encoder **ret,
                                 struct err *e) BASE_NODISCARD;
void route_encoder_close(struct route_encoder **r);
/* For router_options; lives as long as `r`. Any thread: callers wait for each other. */
const struct router_encoder *route_encoder_view(const struct route_encoder *r);
const struct encoder *route_encoder_model(const struct route_encoder *r);
/* encoder_encode under the lock. Any thread. */
enum err_code route_encoder_encode(struct route_encoder *r, const struct encoder_text *texts,
                                   size_t count, float *ret, uint64_t *ret_tokens,
                                   struct err *e) BASE_NODISCARD;

#endif
