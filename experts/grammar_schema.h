/* JSON Schema to rules: what the two files of it share. Private to experts/. */
#ifndef SWITCHYARD_EXPERTS_GRAMMAR_SCHEMA_H
#define SWITCHYARD_EXPERTS_GRAMMAR_SCHEMA_H

#include <jansson.h>

#include "experts/grammar.h"

struct schema_memo {
    const json_t *schema;
    uint32_t rule;
};

struct schema {
    struct gbuild build;
    json_t *root;
    struct schema_memo *memo; /* open addressing by address */
    size_t memo_count, memo_cap;
    json_t *made;             /* array: merged schemas, kept so that addresses stay theirs */
    struct buf path;          /* of the schema at hand, from the request's field */
    uint64_t work;            /* spent on merging; see schema_spend */
    unsigned depth;
    struct err *e;
};

/* The path grows by one name and is cut back to the length that push returned. */
size_t schema_push(struct schema *s, const char *name);
void schema_pop(struct schema *s, size_t len);
/* Fails with the path of `key` in the schema at hand. */
enum err_code schema_wrong(struct schema *s, enum err_code code, const char *key, const char *fmt, ...)
    BASE_PRINTF(4, 5);
/* Merging copies, and references can ask for exponentially many merges: false when it gets too much (the
 * failure is set). One unit is a few ns. */
#define SCHEMA_WORK_MAX 20000000U
#define SCHEMA_WORK_COPY 50U /* of one member */
bool schema_spend(struct schema *s, uint64_t units);
/* The rule of a schema (object or boolean). */
enum err_code schema_rule(struct schema *s, json_t *schema, uint32_t *ret) BASE_NODISCARD;
/* A whole number >= 0; absent leaves *ret as it was. */
enum err_code schema_count(struct schema *s, const json_t *schema, const char *key, uint32_t *ret)
    BASE_NODISCARD;

/* The schema with its $ref, and that one's, put in place. */
enum err_code schema_inline(struct schema *s, json_t *schema, json_t **ret) BASE_NODISCARD;

/* Types as bits; where numbers may be, so may integers. */
enum schema_kind { SCHEMA_OBJECT, SCHEMA_ARRAY, SCHEMA_STRING, SCHEMA_INTEGER, SCHEMA_NUMBER, SCHEMA_BOOLEAN,
                   SCHEMA_NULL, SCHEMA_KINDS };
bool schema_value_is(const json_t *v, unsigned kinds);
unsigned schema_valid_kinds(const json_t *schema); /* of values that may be valid under it */
unsigned schema_made_kinds(const json_t *schema);  /* of values that its rule may generate */

/* grammar_oneof.c: nothing that one's rule generates is valid under the other. */
bool schema_are_apart(struct schema *s, json_t *a, json_t *b);

/* grammar_types.c: what one type of value may be. */
enum err_code schema_string(struct schema *s, json_t *schema, uint32_t next, uint32_t *ret) BASE_NODISCARD;
enum err_code schema_number(struct schema *s, json_t *schema, bool whole, uint32_t next, uint32_t *ret)
    BASE_NODISCARD;
enum err_code schema_array(struct schema *s, json_t *schema, uint32_t next, uint32_t *ret) BASE_NODISCARD;
enum err_code schema_object(struct schema *s, json_t *schema, uint32_t next, uint32_t *ret) BASE_NODISCARD;

/* grammar_merge.c: a new schema that both meet (kept in s->made), or a failure that names the keyword. */
enum err_code schema_merge(struct schema *s, const json_t *a, const json_t *b, json_t **ret)
    BASE_NODISCARD;
bool schema_is_annotation(const char *key);

#endif
