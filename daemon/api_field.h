/* Reading fields of a request body: each says in words what is wrong and names the field. A field
 * that is absent or null leaves *ret as it was. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_API_FIELD_H
#define SWITCHYARD_DAEMON_API_FIELD_H

#include <jansson.h>

#include "base/base.h"

/* The value, or NULL when it is absent or null. */
json_t *field_find(const json_t *object, const char *key);

enum err_code field_bool(const json_t *object, const char *key, bool *ret,
                         struct err *e) BASE_NODISCARD;
/* A number in [min, max]. */
enum err_code field_real(const json_t *object, const char *key, double min, double max, double *ret,
                         struct err *e) BASE_NODISCARD;
/* A whole number in [min, max]; 8.0 is one, 1.5 is not. */
enum err_code field_int(const json_t *object, const char *key, int64_t min, int64_t max,
                        int64_t *ret, struct err *e) BASE_NODISCARD;
/* A string; the pointer is into the document. */
enum err_code field_text(const json_t *object, const char *key, const char **ret,
                         struct err *e) BASE_NODISCARD;
/* "a string", "a number", ... for messages. */
const char *field_type_name(const json_t *value);
/* ERR_INVALID: `param` must be `wanted`, got `value`. */
enum err_code field_bad_type(struct err *e, const char *param, const char *wanted,
                             const json_t *value);
/* The whole body: one JSON object. ERR_INVALID with line and column otherwise. */
enum err_code field_parse_body(const char *body, size_t len, json_t **ret,
                               struct err *e) BASE_NODISCARD;

#endif
