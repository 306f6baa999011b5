/* router/text: from bytes to hashed n-grams. Private to router/.
 *
 * A text becomes a sparse vector: word 1-2-grams and character 2-5-grams inside word borders,
 * hashed into two fixed spaces. The result is a pure function of bytes and geometry: no locale, no
 * table that training builds, so a head file needs no vocabulary. */
#ifndef SWITCHYARD_ROUTER_TEXT_H
#define SWITCHYARD_ROUTER_TEXT_H

#include "base/base.h"

#define TEXT_BITS_MIN 8
#define TEXT_BITS_MAX 22

/* What the vectors depend on; part of the head file. */
struct text_geometry {
    uint32_t word_bits, char_bits;   /* log2 of the two hash spaces; words come first */
    uint32_t head_bytes, tail_bytes; /* of a longer text only these count */
};

struct text_feature {
    uint32_t idx; /* [0, text_space(g)) */
    float value;  /* the whole vector has L2 norm 1 */
};

/* Working memory of one thread, sized for one geometry. */
struct text_scratch;

struct text_geometry text_geometry_default(void);
bool text_geometry_valid(const struct text_geometry *g);
size_t text_space(const struct text_geometry *g); /* number of feature indices */

struct text_scratch *text_scratch_open(const struct text_geometry *g);
void text_scratch_close(struct text_scratch **s);

/* Vector of a text, in the order in which its n-grams first occur. Any bytes are accepted; what is
 * not UTF-8 counts as a word border. The result lives in `s` until the next call. */
const struct text_feature *text_vector(struct text_scratch *s, const char *text, size_t len,
                                       size_t *ret_count);

/* Words of the last text_vector call: 0 means there was nothing to read. */
size_t text_word_count(const struct text_scratch *s);

/* Value of one feature in the last text_vector, 0 if it is not there. */
float text_value(const struct text_scratch *s, uint32_t idx);

/* Every n-gram occurrence of a text with its feature index, for explanations: `ngram` is UTF-8 and
 * valid during the call only. Character n-grams show a word border as a space. The last vector
 * stays valid if the text is the same. */
typedef void text_ngram_fn(void *ctx, uint32_t idx, const char *ngram, size_t len);
void text_each_ngram(struct text_scratch *s, const char *text, size_t len, text_ngram_fn *fn,
                     void *ctx);

#endif
