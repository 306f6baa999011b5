/* router/vectors: the encoder's vectors of many texts, on several encoders at once, and a file that
 * remembers them: training again after a change of a few rows computes only those. Private to
 * router/. */
#ifndef SWITCHYARD_ROUTER_VECTORS_H
#define SWITCHYARD_ROUTER_VECTORS_H

#include "router/router.h"

/* Vectors [count, width] of texts. The encoders must be the same model; each is used by one thread.
 * cache_path NULL = no file; a file that is torn or of another encoder is ignored and replaced.
 * ret_encoded (may be NULL): how many were not in the file. */
enum err_code vectors_make(const struct router_encoder *encoders, size_t encoders_count,
                           const struct router_turn *texts, size_t count, const char *cache_path,
                           const struct progress *progress, float *ret, size_t *ret_encoded,
                           struct err *e) BASE_NODISCARD;

#endif
