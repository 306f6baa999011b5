/* libFuzzer target of the tokenizers: one input is the size of a GGUF header (little-endian u32),
 * the header with its vocabulary, and a text to encode and to decode again. */
#include <stdlib.h>
#include <string.h>

#include "experts/experts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const struct tokenizer *t, const char *text, size_t len, bool parse_special)
{
    struct token_list l = {0};
    struct detok d = {0};
    struct buf shown = {0};
    struct err e;
    if (tokenizer_encode(t, text, len, parse_special, &l, &e) == ERR_OK) {
        for (size_t i = 0; i < l.count; i++) {
            if (l.ids[i] < 0 || l.ids[i] >= tokenizer_vocab(t))
                abort();
            detok_push(&d, t, l.ids[i], &shown);
        }
        detok_end(&d, &shown);
        if (!utf8_valid(shown.data ? shown.data : "", shown.len))
            abort();
    }
    free(l.ids);
    buf_done(&shown);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t header;
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err e;
    if (size < sizeof(header))
        return 0;
    memcpy(&header, data, sizeof(header));
    data += sizeof(header);
    size -= sizeof(header);
    header = (uint32_t)BASE_MIN((size_t)header, size);
    if (gguf_parse(data, header, UINT64_MAX, "input", &g, &e) == ERR_OK &&
        tokenizer_open(g, &t, &e) == ERR_OK) {
        use(t, (const char *)data + header, size - header, true);
        use(t, (const char *)data + header, size - header, false);
    }
    tokenizer_close(&t);
    gguf_close(&g);
    return 0;
}
