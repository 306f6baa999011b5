/* router/augment: more training rows out of those there are. Private to router/.
 *
 * Rows that share a `source` share a wording: "Translate to French: X" for many X. A head trained
 * on such rows learns eight wordings by heart and fails on the ninth. So the wordings are found
 * (what all rows of a source start and end with) and taken apart: bare   rows without a wording
 * weigh more, because only they show what an input looks like on its own; drop   some words of a
 * row are left out, so that no single word is sure to be there; swap   a wording around an input of
 * another label: the request decides, not what it is about; fill   rows of source "wording" hold a
 * request with "{}" where the input goes; they are filled with inputs of the same label. This is
 * how more wordings are taught without more inputs. */
#ifndef SWITCHYARD_ROUTER_AUGMENT_H
#define SWITCHYARD_ROUTER_AUGMENT_H

#include "router/router.h"

#define AUGMENT_SOURCE_WORDING "wording"
#define AUGMENT_HOLE "{}"

struct augment_options {
    float bare_weight; /* of a row without wording, if its label has wordings; other rows weigh 1 */
    double drop_rate;  /* chance of each word to be left out */
    uint32_t drop_copies; /* per row */
    float drop_weight;    /* of all copies of a row together; rows themselves weigh 1 */
    uint32_t swap_copies; /* per found or given wording */
    float swap_weight;    /* per copy */
    double long_share; /* of swapped rows, whose input becomes a page: the request still decides */
    uint32_t fill_copies; /* per given wording */
    float fill_weight;    /* per copy */
    uint64_t seed;
    int general_idx; /* label of what is no expert's, -1 = none: about anything, in any form */
};
struct augment_options augment_options_default(void);

struct sample {
    const char *text;
    size_t len;
    uint32_t label;
    float weight;
    bool counted; /* its features count towards which ones are kept */
};
struct sample_list {
    struct sample *items;
    size_t count, cap;
    struct arena texts; /* of the made rows; given rows point into the data */
};
/* Rows [count] with their labels; the result keeps pointers into `rows`. */
void augment_rows(const struct router_row *const *rows, const uint32_t *label, size_t count,
                  const struct augment_options *opt, struct sample_list *ret);
/* Is this row a request with a hole for the input, and no prompt? */
bool augment_is_wording(const struct router_row *row);
/* The newest turn of a row's text. */
const char *augment_last_turn(const char *text);
void sample_list_done(struct sample_list *l);

#endif
