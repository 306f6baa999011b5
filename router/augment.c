/* Finding wordings and recombining them with inputs. Deterministic: order of rows and seed decide.
 */
#include "router/augment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_ROWS_MIN 8        /* fewer rows share a start by chance */
#define CONTENT_BYTES_MAX 400   /* longer inputs cost time and teach no more */
#define SENTENCES_BYTES_MIN 150 /* from here a text is taken as sentences */
#define SENTENCES_MAX 8         /* of one text */
#define SENTENCE_BYTES_MIN 40
#define PAGE_SENTENCES_MAX 8

struct augment_options augment_options_default(void)
{
    return (struct augment_options){
        .bare_weight = 2.0f,
        .drop_rate = 0.3,
        .drop_copies = 1,
        .drop_weight = 0.5f,
        .swap_copies = 12,
        .swap_weight = 0.5f,
        .long_share = 0.3,
        .fill_copies = 24,
        .fill_weight = 0.4f,
        .seed = 1,
        .general_idx = -1,
    };
}

struct span {
    const char *text;
    size_t len;
};

/* A request, with or without a hole for the input. */
struct wording {
    uint32_t label;
    struct span before, after;
    bool given;
    const char *pattern; /* of a given one: alternatives are drawn anew for every copy; else NULL */
};

struct content {
    uint32_t label;
    struct span span;
};

struct augmenter {
    const struct router_row *const *rows;
    const uint32_t *label;
    size_t count;
    const struct augment_options *opt;
    struct rng rng;
    size_t *order; /* [count] rows sorted by label, source, position */
    struct wording *wordings;
    struct content *contents;
    size_t wordings_count, contents_count;
    bool *bare; /* [count] rows of a source without wording */
    struct sample_list *out;
};

const char *augment_last_turn(const char *text)
{
    const char *sep = strrchr(text, ROUTER_TURN_SEP);
    return sep ? sep + 1 : text;
}

static struct sample *add_sample(struct sample_list *l)
{
    if (l->count == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 4096;
        l->items = mem_grow(l->items, l->cap, sizeof(*l->items));
    }
    return &l->items[l->count++];
}

static void add_made(struct augmenter *a, const char *text, size_t len, uint32_t label,
                     float weight, bool counted)
{
    *add_sample(a->out) = (struct sample){.text = arena_strndup(&a->out->texts, text, len),
                                          .len = len,
                                          .label = label,
                                          .weight = weight,
                                          .counted = counted};
}

/* ---- patterns
 * ------------------------------------------------------------------------------------ */

/* End of the group that opens at `p`, and how many bars separate its alternatives; NULL if it never
 * closes. Groups may nest, and hold holes. */
static const char *group_end(const char *p, const char *end, size_t *ret_bars)
{
    size_t depth = 0, bars = 0;
    for (const char *at = p; at < end; at++) {
        depth += *at == '{';
        bars += *at == '|' && depth == 1;
        if (*at == '}' && --depth == 0) {
            *ret_bars = bars;
            return at;
        }
    }
    return NULL;
}

/* The n-th alternative of the group [open, close]. */
static struct span alternative(const char *open, const char *close, size_t n)
{
    size_t depth = 0, bars = 0;
    const char *from = open + 1;
    for (const char *at = open; at <= close; at++) {
        depth += *at == '{';
        bool ends = (*at == '|' && depth == 1) || at == close;
        depth -= *at == '}';
        if (!ends)
            continue;
        if (bars++ == n)
            return (struct span){from, (size_t)(at - from)};
        from = at + 1;
    }
    return (struct span){from, 0};
}

/* A pattern with one alternative drawn per group. What only looks like a group stays as it is. */
static void draw_pattern(struct rng *rng, struct span s, struct buf *out)
{
    const char *end = s.text + s.len;
    for (const char *p = s.text; p < end; p++) {
        size_t bars = 0;
        const char *close = *p == '{' ? group_end(p, end, &bars) : NULL;
        if (!close || bars == 0) {
            buf_append(out, p, 1);
            continue;
        }
        draw_pattern(rng, alternative(p, close, rng_below(rng, bars + 1)), out);
        p = close;
    }
}

bool augment_is_wording(const struct router_row *row)
{
    const char *text = augment_last_turn(row->text);
    if (strcmp(row->source, AUGMENT_SOURCE_WORDING) != 0)
        return false;
    if (strstr(text, AUGMENT_HOLE))
        return true;
    for (const char *p = strchr(text, '{'); p; p = strchr(p + 1, '{')) {
        size_t bars = 0;
        if (group_end(p, text + strlen(text), &bars) && bars > 0)
            return true;
    }
    return false;
}

/* ---- finding the wordings
 * ------------------------------------------------------------------------ */

static int compare_rows(const void *x, const void *y, void *ctx)
{
    const struct augmenter *a = ctx;
    size_t i = *(const size_t *)x, j = *(const size_t *)y;
    if (a->label[i] != a->label[j])
        return a->label[i] < a->label[j] ? -1 : 1;
    int by_source = strcmp(a->rows[i]->source, a->rows[j]->source);
    if (by_source != 0)
        return by_source;
    return i < j ? -1 : 1;
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (uint8_t)c >= 0x80;
}

static bool is_inner(char c)
{
    return is_letter(c) || (c >= '0' && c <= '9');
}

static bool has_word(struct span s)
{
    for (size_t i = 0; i + 1 < s.len; i++)
        if (is_letter(s.text[i]) && is_letter(s.text[i + 1]))
            return true;
    return false;
}

/* What all rows [begin, end) of the order start and end with, cut back to whole words. */
static void find_common(const struct augmenter *a, size_t begin, size_t end, struct span *before,
                        struct span *after)
{
    const char *first = augment_last_turn(a->rows[a->order[begin]]->text);
    size_t len = strlen(first), prefix = len, suffix = len;
    for (size_t r = begin + 1; r < end; r++) {
        const char *text = augment_last_turn(a->rows[a->order[r]]->text);
        size_t text_len = strlen(text), same = 0;
        while (same < prefix && same < text_len && text[same] == first[same])
            same++;
        prefix = same;
        same = 0;
        while (same < suffix && same < text_len - BASE_MIN(prefix, text_len) &&
               text[text_len - 1 - same] == first[len - 1 - same])
            same++;
        suffix = same;
    }
    while (prefix > 0 && is_inner(first[prefix - 1]))
        prefix--;
    while (suffix > 0 && is_inner(first[len - suffix]))
        suffix--;
    *before = (struct span){first, prefix};
    *after = (struct span){first + len - suffix, suffix};
}

static void add_content(struct augmenter *a, uint32_t label, const char *text, size_t len)
{
    if (len > 0 && len <= CONTENT_BYTES_MAX && has_word((struct span){text, len}))
        a->contents[a->contents_count++] = (struct content){.label = label, .span = {text, len}};
}

static const char *sentence_end(const char *p, const char *end)
{
    while (p < end && *p != '\n') {
        bool stop = *p == '.' || *p == '?' || *p == '!';
        p++;
        if (stop && (p == end || *p == ' '))
            break;
    }
    return p;
}

/* Long texts about anything are a source of plain sentences, which no expert's inputs are. */
static void add_sentences(struct augmenter *a, uint32_t label, const char *text, size_t len)
{
    const char *end = text + len;
    for (size_t n = 0; text < end && n < SENTENCES_MAX;) {
        while (text < end && (*text == ' ' || *text == '\n'))
            text++;
        const char *stop = sentence_end(text, end);
        if ((size_t)(stop - text) >= SENTENCE_BYTES_MIN) {
            add_content(a, label, text, (size_t)(stop - text));
            n++;
        }
        text = stop;
    }
}

/* One source: its wording if it has one, and the inputs of its rows. */
static void read_group(struct augmenter *a, size_t begin, size_t end)
{
    struct span before = {"", 0}, after = {"", 0};
    uint32_t label = a->label[a->order[begin]];
    if (end - begin >= GROUP_ROWS_MIN)
        find_common(a, begin, end, &before, &after);
    if (has_word(before) || has_word(after)) {
        a->wordings[a->wordings_count++] =
            (struct wording){.label = label, .before = before, .after = after};
    } else {
        before.len = after.len = 0;
    }
    for (size_t r = begin; r < end; r++) {
        const char *text = augment_last_turn(a->rows[a->order[r]]->text);
        size_t len = strlen(text), affixes = before.len + after.len;
        a->bare[a->order[r]] = affixes == 0;
        if (len <= affixes)
            continue;
        if ((int)label == a->opt->general_idx && len > SENTENCES_BYTES_MIN)
            add_sentences(a, label, text + before.len, len - affixes);
        else
            add_content(a, label, text + before.len, len - affixes);
    }
}

static void read_given(struct augmenter *a, size_t row)
{
    const char *text = augment_last_turn(a->rows[row]->text);
    if (augment_is_wording(a->rows[row]))
        a->wordings[a->wordings_count++] =
            (struct wording){.label = a->label[row], .given = true, .pattern = text};
}

static bool is_given(const struct router_row *row)
{
    return strcmp(row->source, AUGMENT_SOURCE_WORDING) == 0;
}

static void read_groups(struct augmenter *a)
{
    for (size_t begin = 0, end; begin < a->count; begin = end) {
        const struct router_row *row = a->rows[a->order[begin]];
        for (end = begin + 1; end < a->count; end++)
            if (a->label[a->order[end]] != a->label[a->order[begin]] ||
                strcmp(a->rows[a->order[end]]->source, row->source) != 0)
                break;
        if (!is_given(row)) {
            read_group(a, begin, end);
            continue;
        }
        for (size_t r = begin; r < end; r++)
            read_given(a, a->order[r]);
    }
}

/* ---- making rows
 * ----------------------------------------------------------------------------------- */

/* An input of (`same`) or not of the label; NULL if none was found in a few draws. */
static const struct content *draw_content(struct augmenter *a, uint32_t label, bool same)
{
    for (int attempt = 0; attempt < 400 && a->contents_count > 0; attempt++) {
        const struct content *c = &a->contents[rng_below(&a->rng, a->contents_count)];
        if ((c->label == label) == same)
            return c;
    }
    return NULL;
}

/* More sentences about anything behind the input. */
static void append_page(struct augmenter *a, const struct wording *w, struct buf *text)
{
    uint64_t sentences = 1 + rng_below(&a->rng, PAGE_SENTENCES_MAX);
    bool any = a->opt->general_idx < 0 || (uint32_t)a->opt->general_idx == w->label;
    for (uint64_t i = 0; i < sentences; i++) {
        const struct content *c = any ? draw_content(a, w->label, false)
                                      : draw_content(a, (uint32_t)a->opt->general_idx, true);
        if (!c)
            return;
        buf_append(text, " ", 1);
        buf_append(text, c->span.text, c->span.len);
    }
}

/* What stands before and after the input of one copy of a given wording, `drawn` holding both.
 * False: it has no hole, and is the request. */
static bool draw_wording(struct augmenter *a, const struct wording *w, struct buf *drawn,
                         struct span *before, struct span *after)
{
    buf_clear(drawn);
    draw_pattern(&a->rng, (struct span){w->pattern, strlen(w->pattern)}, drawn);
    const char *text = drawn->data ? drawn->data : "", *hole = strstr(text, AUGMENT_HOLE);
    *before = (struct span){text, hole ? (size_t)(hole - text) : strlen(text)};
    *after = (struct span){"", 0};
    if (hole)
        *after = (struct span){hole + strlen(AUGMENT_HOLE), strlen(hole + strlen(AUGMENT_HOLE))};
    return hole != NULL;
}

/* One row: the wording around an input of its own label (`same`) or of another. */
static void add_filled(struct augmenter *a, const struct wording *w, bool same, struct buf *text,
                       struct buf *drawn)
{
    struct span before = w->before, after = w->after;
    bool hole = !w->pattern || draw_wording(a, w, drawn, &before, &after);
    const struct content *c = hole ? draw_content(a, w->label, same) : NULL;
    if (hole ? !c : !same)
        return;
    buf_clear(text);
    buf_append(text, before.text, before.len);
    if (hole)
        buf_append(text, c->span.text, c->span.len);
    if (!same && rng_f64(&a->rng) < a->opt->long_share)
        append_page(a, w, text);
    buf_append(text, after.text, after.len);
    if (!has_word((struct span){text->data ? text->data : "", text->len}))
        return;
    add_made(a, text->data, text->len, w->label, same ? a->opt->fill_weight : a->opt->swap_weight,
             true);
}

/* Copies of a wording: the more it can become, the more. */
static uint32_t copies_of(const struct wording *w, uint32_t plain)
{
    double variants = 1.0;
    const char *end = w->pattern ? w->pattern + strlen(w->pattern) : NULL;
    for (const char *p = w->pattern; p && p < end; p++) {
        size_t bars = 0;
        const char *close = *p == '{' ? group_end(p, end, &bars) : NULL;
        if (!close || bars == 0)
            continue;
        variants *= (double)(bars + 1);
        p = close;
    }
    return (uint32_t)lround((double)plain * BASE_MIN(3.0, sqrt(variants)));
}

static void make_filled(struct augmenter *a)
{
    struct buf text = {0}, drawn = {0};
    for (size_t i = 0; i < a->wordings_count; i++) {
        const struct wording *w = &a->wordings[i];
        uint32_t fills = w->given ? copies_of(w, a->opt->fill_copies) : 0;
        uint32_t swaps = copies_of(w, a->opt->swap_copies);
        for (uint32_t n = 0; n < fills + swaps; n++)
            add_filled(a, w, n < fills, &text, &drawn);
    }
    buf_done(&text);
    buf_done(&drawn);
}

/* Leave words out; at least one stays. */
static void drop_words(struct augmenter *a, struct span text, struct buf *out)
{
    buf_clear(out);
    size_t i = 0;
    while (i < text.len) {
        size_t from = i;
        while (i < text.len && (uint8_t)text.text[i] > ' ')
            i++;
        while (i < text.len && (uint8_t)text.text[i] <= ' ')
            i++;
        bool last = i >= text.len && out->len == 0;
        if (last || rng_f64(&a->rng) >= a->opt->drop_rate)
            buf_append(out, text.text + from, i - from);
    }
}

static void make_dropped(struct augmenter *a, size_t samples)
{
    struct buf scratch = {0};
    uint32_t copies = a->opt->drop_copies;
    for (size_t i = 0; i < samples && copies > 0; i++) {
        struct sample s = a->out->items[i];
        for (uint32_t n = 0; n < copies; n++) {
            drop_words(a, (struct span){s.text, s.len}, &scratch);
            add_made(a, scratch.data, scratch.len, s.label,
                     s.weight * a->opt->drop_weight / (float)copies, false);
        }
    }
    buf_done(&scratch);
}

/* General rows are not weighed up: there is no input that is theirs. */
static float original_weight(const struct augmenter *a, size_t row)
{
    if (!a->bare[row] || (int)a->label[row] == a->opt->general_idx)
        return 1.0f;
    for (size_t i = 0; i < a->wordings_count; i++)
        if (a->wordings[i].label == a->label[row] && !a->wordings[i].given)
            return a->opt->bare_weight;
    return 1.0f;
}

static void take_originals(struct augmenter *a)
{
    for (size_t i = 0; i < a->count; i++) {
        if (augment_is_wording(a->rows[i]))
            continue;
        const char *text = augment_last_turn(a->rows[i]->text);
        *add_sample(a->out) = (struct sample){.text = text,
                                              .len = strlen(text),
                                              .label = a->label[i],
                                              .weight = original_weight(a, i),
                                              .counted = true};
    }
}

void augment_rows(const struct router_row *const *rows, const uint32_t *label, size_t count,
                  const struct augment_options *opt, struct sample_list *ret)
{
    *ret = (struct sample_list){0};
    arena_init(&ret->texts, BASE_MIB);
    struct augmenter a = {.rows = rows, .label = label, .count = count, .opt = opt, .out = ret};
    rng_init(&a.rng, opt->seed);
    a.order = mem_array(count + 1, sizeof(*a.order));
    a.wordings = mem_array(count + 1, sizeof(*a.wordings));
    a.contents = mem_array(count * SENTENCES_MAX + 1, sizeof(*a.contents));
    a.bare = mem_array(count + 1, sizeof(*a.bare));
    for (size_t i = 0; i < count; i++)
        a.order[i] = i;
    qsort_r(a.order, count, sizeof(*a.order), compare_rows, &a);
    read_groups(&a);
    take_originals(&a);
    make_filled(&a);
    make_dropped(&a, ret->count);
    free(a.order);
    free(a.wordings);
    free(a.contents);
    free(a.bare);
}

void sample_list_done(struct sample_list *l)
{
    free(l->items);
    arena_done(&l->texts);
    *l = (struct sample_list){0};
}
