/* libFuzzer target of the chat templates. One input is a template, then a line "===" and the JSON
 * of its variables; without such a line the whole input is the template. */
#include <stdlib.h>
#include <string.h>

#include "experts/experts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char usual[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"h\\u00e9\"}, {\"role\": \"assistant\", "
    "\"content\": null}], \"tools\": [{\"function\": {\"name\": \"f\"}}], \"t\": true, \"i\": 7}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char mark[] = "\n===\n";
    const char *cut = memmem(data, size, mark, sizeof(mark) - 1);
    size_t len = cut ? (size_t)(cut - (const char *)data) : size;
    char *extra = cut ? mem_strndup(cut + sizeof(mark) - 1, size - len - (sizeof(mark) - 1))
                      : mem_strdup(usual);
    struct chat_template *t = NULL;
    struct buf out = {0};
    struct err e;
    if (template_parse((const char *)data, len, &t, &e) == ERR_OK) {
        struct template_input in = {.messages_json = "[]",
                                    .extra_json = extra,
                                    .bos_token = "<s>",
                                    .eos_token = "</s>",
                                    .add_generation_prompt = true};
        if (template_render(t, &in, &out, &e) == ERR_OK &&
            !utf8_valid(out.data ? out.data : "", out.len))
            abort();
        template_close(&t);
    }
    buf_done(&out);
    free(extra);
    return 0;
}
