// NVRTC, but for the host: a kernel becomes a library, by a C++ compiler, that libcuda.cpp can load. It is kept by its text in the folder
// HALFBYTE_EMULATED_KERNELS. Where HALFBYTE_EMULATED_NVRTC names a folder of NVIDIA's packages `cuda_nvrtc` and `cuda_runtime`, NVRTC itself must take
// the text too, with CUDA's own headers, for the architecture that was asked for.
//
// Compile with -DHEADERS="\"folder\"", that of kernel.h, and -DPTX="\"file\"", shaders/src/ptx.cu, whose twin on the host is ptx.h.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <regex>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default"))) int

namespace {

enum Result { SUCCESS = 0, INVALID_INPUT = 3, COMPILATION = 6 };

struct Program { std::string text, library, log; };

std::string read(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

bool exists(const std::string& path) {
    struct stat about;
    return !stat(path.c_str(), &about);
}

std::string folder() {
    const char* asked = getenv("HALFBYTE_EMULATED_KERNELS");
    return asked ? asked : ".";
}

// The text as the host's compiler takes it.
std::string for_host(std::string text) {
    const std::string ptx = read(PTX);
    if (const size_t at = text.find(ptx); at != std::string::npos) text.erase(at, ptx.size());
    // Shared memory whose size the launch says, as CubeCL declares it.
    const std::regex launched(R"(extern __shared__ [^;\[]*?(\w+) (\w+)\[\];)");
    return std::regex_replace(text, launched, "$1* const $2 = ($1*)device::launched_shared();");
}

// NVRTC's own functions, which have the names of those below.
template <class F> F nvidias(const char* name) {
    static void* const library = dlopen((std::string(getenv("HALFBYTE_EMULATED_NVRTC")) + "/cuda_nvrtc/lib/libnvrtc.so.12").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "emulated NVRTC: %s\n", dlerror()), abort();
    return (F)dlsym(library, name);
}

// Whether NVRTC takes a text; what it says where it does not.
int ask_nvidia(Program& program, int count, const char* const* options) {
    std::vector<std::string> own;
    std::string key;
    for (int i = 0; i < count; i++) {
        if (strncmp(options[i], "--include-path", 14)) own.push_back(options[i]), key += own.back() + "\n";
    }
    std::ostringstream taken;
    taken << folder() << "/nvrtc-" << std::hex << std::hash<std::string>()(key + program.text);
    if (exists(taken.str())) return SUCCESS;
    own.push_back("--include-path=" + std::string(getenv("HALFBYTE_EMULATED_NVRTC")) + "/cuda_runtime/include");
    std::vector<const char*> words;
    for (const std::string& option : own) words.push_back(option.c_str());
    void* asked;
    size_t bytes = 0;
    nvidias<int (*)(void**, const char*, const char*, int, const char* const*, const char* const*)>("nvrtcCreateProgram")(
        &asked, program.text.c_str(), nullptr, 0, nullptr, nullptr);
    const int result = nvidias<int (*)(void*, int, const char* const*)>("nvrtcCompileProgram")(asked, (int)words.size(), words.data());
    nvidias<int (*)(void*, size_t*)>("nvrtcGetProgramLogSize")(asked, &bytes);
    std::string log(bytes, 0);
    nvidias<int (*)(void*, char*)>("nvrtcGetProgramLog")(asked, log.data());
    nvidias<int (*)(void**)>("nvrtcDestroyProgram")(&asked);
    if (result) return program.log = "NVRTC: " + log, result;
    std::ofstream(taken.str()) << log;
    return SUCCESS;
}

int build(Program& program) {
    const std::regex entry(R"(__global__\s+(?:void\s+)?(?:__\w+__\s*\(([^)]*)\)\s*)*(?:void\s+)?(\w+)\s*\()");
    std::smatch found;
    if (!std::regex_search(program.text, found, entry)) return program.log = "no kernel in the text", INVALID_INPUT;
    std::ostringstream key;
    key << folder() << "/" << found[2] << "-" << std::hex << std::hash<std::string>()(program.text);
    const std::string source = key.str() + ".cpp", library = key.str() + ".so", log = key.str() + ".log";
    program.library = library;
    if (exists(library)) return SUCCESS;
    std::ofstream(source) << "#include \"kernel.h\"\n" << for_host(program.text) << "\nENTRY(" << found[2] << ", "
                          << (found[1].length() ? found[1].str() : "1024") << ")\n"
                          << (found[2] == "half_warpgroup" ? "static const bool told = device::left_transposed = TRANSPOSED;\n" : "");
    std::ostringstream command;
    command << "c++ -std=c++17 -O1 -ffp-contract=off -fsanitize=alignment -fsanitize-undefined-trap-on-error -fPIC -shared "
            << "-fvisibility=hidden -w -Wno-psabi -I" HEADERS " -I" HEADERS "/include -o " << library << "." << getpid() << " " << source << " > " << log << " 2>&1";
    const bool compiled = !system(command.str().c_str());
    program.log = read(log);
    if (!compiled) return COMPILATION;
    rename((library + "." + std::to_string(getpid())).c_str(), library.c_str());
    return SUCCESS;
}

}  // namespace

EXPORT nvrtcVersion(int* major, int* minor) { return *major = 12, *minor = 9, SUCCESS; }
EXPORT nvrtcCreateProgram(Program** program, const char* text, const char*, int, const char* const*, const char* const*) {
    return *program = new Program { text, "", "" }, SUCCESS;
}
EXPORT nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    const int result = getenv("HALFBYTE_EMULATED_NVRTC") ? ask_nvidia(*program, count, options) : SUCCESS;
    return result ? result : build(*program);
}
EXPORT nvrtcDestroyProgram(Program** program) { return delete *program, SUCCESS; }
EXPORT nvrtcGetPTXSize(Program* program, size_t* bytes) { return *bytes = program->library.size() + 1, SUCCESS; }
EXPORT nvrtcGetPTX(Program* program, char* to) { return program->library.copy(to, program->library.size()), to[program->library.size()] = 0, SUCCESS; }
EXPORT nvrtcGetProgramLogSize(Program* program, size_t* bytes) { return *bytes = program->log.size() + 1, SUCCESS; }
EXPORT nvrtcGetProgramLog(Program* program, char* to) { return program->log.copy(to, program->log.size()), to[program->log.size()] = 0, SUCCESS; }
