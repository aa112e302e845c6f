// sizeof every struct of arguments.h, for the test that compares them with Rust's.

#include "emulator/bridge.h"

#include "device.cuh"
#include "rewind-kernels-emulator/src/bridge.rs.h"

namespace emulator {

rust::Vec<Size> sizes() {
    rust::Vec<Size> sizes;
#define SIZE(Struct) sizes.push_back({rust::String(#Struct), sizeof(::Struct)})
    SIZE(Matrix);
    SIZE(Row);
    SIZE(Cache);
    SIZE(EmbedArguments);
    SIZE(NormArguments);
    SIZE(ProductArguments);
    SIZE(RotateArguments);
    SIZE(AttendArguments);
    SIZE(CopyPagesArguments);
    SIZE(Choice);
    SIZE(LogitTile);
    SIZE(HeadArguments);
    SIZE(Answer);
    SIZE(LogprobEntry);
    SIZE(FinishArguments);
    SIZE(ChooseArguments);
    SIZE(LogprobsArguments);
#undef SIZE
    return sizes;
}

} // namespace emulator
