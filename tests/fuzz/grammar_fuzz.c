/* libFuzzer target of constrained output. The first byte picks the kind: a JSON Schema, GBNF, or
 * the schema of a function's arguments. What compiles is walked along its shortest text, which must
 * come to an end in as many bytes as its states say. */
#include <stdlib.h>

#include "experts/grammar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define STEPS_MAX 200U

static enum err_code compile_call(const char *schema, struct grammar **ret, struct err *e)
{
    static const struct grammar_call_form form = {.marker = "<call>",
                                                  .open = "{\"name\": \"",
                                                  .middle = "\", \"arguments\": ",
                                                  .end = "}</call>",
                                                  .between = "\n",
                                                  .again = "<call>{\"name\": \""};
    const struct grammar_tool tool = {.name = "f", .schema = schema, .param = "parameters"};
    const struct grammar_tools opt = {.tools = &tool, .count = 1, .form = &form, .calls_max = 3};
    return grammar_compile_tools(&opt, ret, e);
}

static enum err_code compile(uint8_t kind, const char *text, size_t len, struct grammar **ret)
{
    struct err e;
    if (kind % 3 == 0)
        return grammar_compile_schema(text, len, "schema", ret, &e);
    if (kind % 3 == 1)
        return grammar_compile_gbnf(text, len, ret, &e);
    return compile_call(text, ret, &e);
}

/* The byte after which the shortest rest is shortest; -1 = none fits. */
static int best_byte(struct grammar_state *s, uint32_t *ret_rest)
{
    int best = -1;
    *ret_rest = UINT32_MAX;
    grammar_begin_work(s);
    for (int byte = 0; byte < 256; byte++) {
        bool full = false;
        uint32_t to = grammar_next(s, grammar_state_now(s), (uint8_t)byte, &full);
        if (to == GRAMMAR_DEAD || grammar_state_bytes(s, to) >= *ret_rest)
            continue;
        best = byte;
        *ret_rest = grammar_state_bytes(s, to);
    }
    return best;
}

static void walk(struct grammar_state *s)
{
    uint32_t rest = grammar_state_bytes(s, grammar_state_now(s)), next;
    if (rest > STEPS_MAX)
        return;
    for (uint32_t i = 0; i < STEPS_MAX && !grammar_complete(s); i++) {
        int byte = best_byte(s, &next);
        char c = (char)byte;
        if (byte < 0 || next + 1 != rest || !grammar_accept_bytes(s, &c, 1))
            abort();
        rest = next;
    }
    if (!grammar_complete(s))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct grammar *g = NULL;
    if (size == 0)
        return 0;
    char *text = mem_strndup((const char *)data + 1, size - 1);
    if (compile(data[0], text, size - 1, &g) == ERR_OK) {
        struct grammar_state *s = grammar_state_open(g, NULL);
        walk(s);
        grammar_state_close(&s);
        grammar_unref(&g);
    }
    free(text);
    return 0;
}
