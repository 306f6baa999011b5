/* See support.h. */
#include "support.h"

#include <unistd.h>

static const char *const wordings[4][4] = {
    {"Translate to Klingon: %s", "%s in Klingon please", "How do Klingons say %s?", "klingon: %s"},
    {"Sort these words: %s", "Put in alphabetical order: %s", "%s -> sorted", "alphabetise %s"},
    {"Count the letters of %s", "How many letters has %s?", "letter count: %s",
     "%s: number of letters"},
    {"Tell me about %s", "What do you think of %s?", "I like %s", "Where can I buy %s?"},
};
static const char *const experts[4] = {"klingon", "sorter", "counter", "general"};
static const char *const words[] = {
    "apple",  "river",  "engine", "paper",  "winter", "castle", "doctor", "violin",
    "garden", "copper", "island", "monkey", "silver", "tunnel", "butter", "forest",
};

void support_add(struct router_data *d, const char *text, const char *expert, const char *source)
{
    d->rows = mem_grow(d->rows, d->count + 1, sizeof(*d->rows));
    d->rows[d->count++] = (struct router_row){mem_strdup(text), mem_strdup(expert),
                                              mem_strdup(source), mem_strdup("")};
}

struct router_data support_data(size_t rows, uint64_t seed)
{
    struct router_data d = {0};
    struct rng rng;
    rng_init(&rng, seed);
    for (size_t i = 0; i < rows; i++) {
        size_t expert = i % 4, wording = rng_below(&rng, 4);
        char input[64], text[160], source[32];
        snprintf(input, sizeof(input), "%s %s", words[rng_below(&rng, BASE_COUNT(words))],
                 words[rng_below(&rng, BASE_COUNT(words))]);
        snprintf(source, sizeof(source), "made:t%zu", wording);
        const char *pattern = wordings[expert][wording], *hole = strstr(pattern, "%s");
        snprintf(text, sizeof(text), "%.*s%s%s", (int)(hole - pattern), pattern, input, hole + 2);
        support_add(&d, text, experts[expert], source);
    }
    return d;
}

struct buf support_train(const struct router_train_options *opt)
{
    struct router_data d = support_data(400, 1);
    struct buf head = {0};
    struct err e = {0};
    if (router_train(&d, NULL, opt, NULL, &head, NULL, &e) != ERR_OK)
        fail_msg("training failed: %s", e.msg);
    router_data_done(&d);
    return head;
}

struct router_head *support_head(void)
{
    struct buf bytes = support_train(NULL);
    struct router_head *h = NULL;
    struct err e = {0};
    if (router_head_parse(bytes.data, bytes.len, &h, &e) != ERR_OK)
        fail_msg("head refused: %s", e.msg);
    buf_done(&bytes);
    return h;
}

struct router_decision support_decide(const struct router_head *h, const char *text, size_t len,
                                      const struct router_options *opt)
{
    struct router_decision d;
    struct router_scratch *s = router_scratch_open(h);
    struct router_turn turn = {text, len};
    router_decide(h, s, &turn, 1, opt, &d, NULL);
    router_scratch_close(&s);
    return d;
}

int support_label(const struct router_head *h, const char *name)
{
    for (size_t i = 0; i < router_head_labels(h); i++)
        if (strcmp(router_head_label(h, i), name) == 0)
            return (int)i;
    return -1;
}

char *support_source(const char *relative)
{
    const char *root = getenv("SWITCHYARD_SOURCE");
    return mem_format("%s/%s", root ? root : ".", relative);
}

char *support_shared(const char *relative)
{
    const char *root = getenv("SWITCHYARD_SHARED");
    char *path = mem_format("%s/%s", root ? root : "../shared", relative);
    if (access(path, R_OK) == 0)
        return path;
    free(path);
    return NULL;
}
